"""The encoders that exist here and that could be fetched; standard library only.

`nano` ships with the package, `dinov2-small` is fetched, `hf:<id or folder>` and
`timm:<name or folder>` stand for checkpoints of those libraries. A name that starts with "planted"
belongs to `fusionbench/encoders/planted.py`, whose literal `ENCODERS` maps names to `version`,
`layers`, `dim`, `grid`, `prefix` and `size`; it is read here without importing it.
"""

import ast
import difflib
import hashlib
from pathlib import Path
from typing import Any

from fusionbench.encoders import own, snapshots
from fusionbench.encoders.card import EncoderCard
from fusionbench.records.cell import canonical

PREFIXES = ("hf:", "timm:")
_PLANTED = Path(__file__).parent / "planted.py"


def describe(name: str, *, image_size: int = 0) -> EncoderCard:
    """What an encoder is, without importing or fetching anything.

    Raises ValueError for an unknown name (with the nearest one), a folder that holds no
    supported checkpoint, or a size that the encoder cannot take.
    """
    if name in own.OWN:
        return own.card(name, image_size=image_size)
    if name.startswith("planted"):
        return _planted_card(name, image_size)
    if name.startswith(PREFIXES):
        return snapshots.card(name, image_size=image_size)
    raise ValueError(unknown(name))


def available() -> list[EncoderCard]:
    """Encoders to choose from: ours, then the checkpoints in the Hugging Face cache."""
    cards = [describe(name) for name in own.OWN]
    for name in snapshots.cached_names():
        try:
            cards.append(describe(name))
        except (ValueError, KeyError):
            # Someone else's half-finished or foreign download is no error of a listing.
            continue
    return cards


def planted_facts() -> dict[str, dict[str, Any]]:
    """The literal `ENCODERS` of planted.py."""
    for node in ast.parse(_PLANTED.read_text()).body:
        if isinstance(node, ast.AnnAssign):
            targets: list[ast.expr] = [node.target]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        else:
            continue
        if any(isinstance(t, ast.Name) and t.id == "ENCODERS" for t in targets) and node.value:
            return ast.literal_eval(node.value)
    raise ValueError(f"{_PLANTED.name} has no literal ENCODERS")


def unknown(name: str) -> str:
    """The sentence about a name that nobody has."""
    near = difflib.get_close_matches(name, own.OWN, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if Path(name).is_dir():
        hint = f"; for a checkpoint in this folder write 'hf:{name}' or 'timm:{name}'"
    return (
        f"no encoder {name!r}{hint} (known: {', '.join(own.OWN)}, hf:<id or folder>, "
        "timm:<name or folder>)"
    )


def _planted_card(name: str, image_size: int) -> EncoderCard:
    facts = planted_facts() if _PLANTED.is_file() else {}
    if name not in facts:
        raise ValueError(f"no planted encoder {name!r}; there are: {', '.join(facts) or 'none'}")
    fact = facts[name]
    if image_size not in (0, fact["size"]):
        raise ValueError(f"{name} reads images of {fact['size']} pixels only, got {image_size}")
    digest = hashlib.sha256(canonical({"planted": name} | fact).encode()).hexdigest()[:32]
    return EncoderCard(
        name=name,
        source="synthetic, with a known right answer",
        available=True,
        path=str(_PLANTED),
        weights=digest,
        layers=fact["layers"],
        dim=fact["dim"],
        grid=tuple(fact["grid"]),
        prefix=fact["prefix"],
        size=fact["size"],
    )
