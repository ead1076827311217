"""Layer sets as papers write them, resolved for the encoder at hand."""

from fusionbench.fusion import Tap
from fusionbench.types import StackShape


def paper_taps(shape: StackShape, layers: str, *, blocks: int = 24) -> tuple[Tap, ...]:
    """Taps from words such as "23,7,15" or "23,0..11,12..23".

    A comma starts a new tap; `a..b` (both ends included) and `a+b` are averaged within one. The
    numbers are hidden states of the paper's encoder of `blocks` blocks and are mapped to this one
    by `StackShape.paper_layer`. What a shallow encoder maps to the same layers is kept once.
    """
    taps = [
        tuple(dict.fromkeys(shape.paper_layer(index, blocks=blocks) for index in _parse(tap)))
        for tap in layers.split(",")
    ]
    return tuple(dict.fromkeys(taps))


def anchored(taps: tuple[Tap, ...], anchor: Tap) -> tuple[tuple[Tap, ...], int]:
    """Taps with the anchor behind them, unless it is one of them; and where it stands."""
    joined = taps if anchor in taps else (*taps, anchor)
    return joined, joined.index(anchor)


def _parse(tap: str) -> list[int]:
    found: list[int] = []
    for part in tap.split("+"):
        first, _, last = part.strip().partition("..")
        if not (first.isdigit() and (last or first).isdigit()):
            raise ValueError(f"layers are written like 23,7,15 or 23,0..11,12..23, not {tap!r}")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise ValueError(f"no layer lies in {tap!r}")
    return found
