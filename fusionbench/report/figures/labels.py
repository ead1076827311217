"""Names beside marks that never overlap, however many there are."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fusionbench.report.style import GUIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_INCHES = 0.125
"""Height that a line of text needs."""
_PAD_POINTS = 14.0


def wrapped(name: str, letters: int = 21) -> str:
    """A long name over several lines, broken after `_`, `-` or a space where that is possible."""
    lines = [""]
    for part in re.findall(r"[^_\- ]*[_\- ]*", name):
        while len(part) > letters:
            lines, part = [*lines, part[:letters]], part[letters:]
        if len(lines[-1]) + len(part.rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines if line)


def spread(wanted: Float[np.ndarray, " label"], gap: float) -> Float[np.ndarray, " label"]:
    """Places in [0, 1], at least `gap` apart and as near to the wanted ones as can be.

    The order is kept, ties go by position. Least squares under the gaps is isotonic regression
    of `wanted - rank * gap` (pool adjacent violators). ValueError if they cannot fit.
    """
    count = len(wanted)
    if count and (count - 1) * gap > 1 + 1e-9:
        raise ValueError(f"{count} labels with a gap of {gap:g} do not fit into 1")
    order = np.argsort(wanted, kind="stable")
    ranks = np.arange(count) * gap
    slack = 1 - (count - 1) * gap
    found = np.empty(count)
    found[order] = np.clip(_isotonic(wanted[order] - ranks), 0, max(slack, 0)) + ranks
    return found


def _isotonic(values: Float[np.ndarray, " label"]) -> Float[np.ndarray, " label"]:
    """The non-decreasing sequence nearest to the values."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        blocks.append((mean, size))
    return np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])


def label_column(
    axes: "Axes", heights: Float[np.ndarray, " label"], texts: Sequence[str], inches: float
) -> None:
    """Names right of the axes, each led to its height; `inches` is the height of the axes.

    The names are tick labels of a second axis, so that the layout makes room for them.
    """
    low, high = axes.get_ylim()
    at = (heights - low) / (high - low)
    slots = spread(at, min(LINE_INCHES / inches, 1 / max(len(at) - 1, 1)))
    beside = axes.twinx()
    beside.set_ylim(0, 1)
    beside.set_yticks(slots, texts)
    beside.tick_params(axis="y", right=False, pad=_PAD_POINTS)
    for spine in beside.spines.values():
        spine.set_visible(False)
    for start, end in zip(at, slots, strict=True):
        _leader(axes, float(start), float(end))


def _leader(axes: "Axes", start: float, end: float) -> None:
    """A thin line from the edge of the axes to a label."""
    from matplotlib.transforms import ScaledTranslation

    right = ScaledTranslation((_PAD_POINTS - 2) / 72, 0, axes.figure.dpi_scale_trans)
    axes.annotate(
        "", xy=(1, start), xytext=(1, end), xycoords="axes fraction",
        textcoords=axes.transAxes + right, annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": GUIDE, "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip
