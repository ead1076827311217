"""Performance profile: how often a run gets further than a threshold (Agarwal et al. 2021)."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fusionbench.report.figures.drawing import Drawing
from fusionbench.report.figures.legend import series_handles
from fusionbench.report.figures.material import Material
from fusionbench.report.figures.representatives import representatives
from fusionbench.report.style import GRID, GUIDE, series
from fusionbench.report.tables import Row
from fusionbench.stats.ranks import performance_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 101
_READING = """\
The share of all (run, task) scores that lie above a threshold; the threshold counts how much of
the way from chance (0) to every answer right (1) a run got. A curve further up and right is
better; curves that cross are better at different things. Drawn is one method per family, chosen by
name; thin grey lines are all others. Descriptive: no test belongs to it."""


def draw(material: Material) -> Drawing | None:
    """One curve per method that ran everywhere."""
    values = _normalised(material)
    complete = [row for row in range(len(values)) if not np.isnan(values[row]).any()]
    rows = [row for row in complete if row not in material.table.leaky]
    if len(rows) < 2:
        return None
    thresholds = np.linspace(min(0.0, float(values[rows].min())), 1, _POINTS)
    curves = {row: performance_profile(values[row].T, thresholds) for row in rows}
    return Drawing(
        name="profile",
        title="Performance profile",
        reading=_READING,
        figure=_figure(material, thresholds, curves),
        data=_rows(material, thresholds, curves),
    )


def _normalised(material: Material) -> Float[np.ndarray, "method task seed"]:
    chance = np.array([task.chance for task in material.table.tasks])[:, None]
    return (material.table.values - chance) / (1 - chance)


def _figure(
    material: Material,
    thresholds: Float[np.ndarray, " threshold"],
    curves: dict[int, Float[np.ndarray, " threshold"]],
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots()
    shown = representatives(material, complete=True)
    for row in sorted(set(curves) - set(shown)):
        axes.plot(thresholds, curves[row], color=GUIDE, linewidth=0.5, alpha=0.5)
    for position, row in enumerate(shown):
        look = series(position)
        axes.plot(thresholds, curves[row], color=look.color, linestyle=look.line, linewidth=1.2,
                  marker=look.marker, markevery=(3 * position, 25), markersize=4)  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_xlim(thresholds[0], _right(curves.values(), thresholds))
    axes.grid(visible=True, color=GRID)
    axes.set_xlabel("threshold: share of the way from chance to all right")
    axes.set_ylabel("share of runs above it")
    handles = series_handles([material.labels[row] for row in shown])
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def _right(
    curves: Collection[Float[np.ndarray, " threshold"]], thresholds: Float[np.ndarray, " threshold"]
) -> float:
    """Where the last curve reaches 0: what lies right of it is empty."""
    last = max(int(np.flatnonzero(curve > 0).max(initial=0)) for curve in curves)
    return float(thresholds[min(last + 2, len(thresholds) - 1)])


def _rows(
    material: Material,
    thresholds: Float[np.ndarray, " threshold"],
    curves: dict[int, Float[np.ndarray, " threshold"]],
) -> list[Row]:
    return [
        {"method": material.labels[row], "threshold": f"{threshold:.4f}", "share": f"{share:.6f}"}
        for row, curve in sorted(curves.items())
        for threshold, share in zip(thresholds, curve, strict=True)
    ]
