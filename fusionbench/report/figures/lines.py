"""Many thin lines behind the ones that are read: one artist, however many there are."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Real

from fusionbench.report.style import GUIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = tuple[Real[np.ndarray, " point"], Float[np.ndarray, " point"]]
"""Where its points lie, across and up."""


def thin(panel: "Axes", lines: Iterable[Line], *, width: float, alpha: float) -> None:
    """Draw grey lines; NaN breaks one. A line of its own for each takes ten times as long."""
    from matplotlib.collections import LineCollection

    segments = [np.column_stack(line) for line in lines]
    if segments:
        panel.add_collection(LineCollection(segments, colors=GUIDE, linewidths=width, alpha=alpha))
