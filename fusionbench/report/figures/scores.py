"""Scores per task: every run a point, the mean a bar across its interval, chance a dashed line."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fusionbench.report.figures.drawing import Drawing
from fusionbench.report.figures.labels import wrapped
from fusionbench.report.figures.legend import legend, where_handles
from fusionbench.report.figures.material import Material
from fusionbench.report.style import GRID, GUIDE, IN_ENCODER, ON_FEATURES, SMALL
from fusionbench.report.summary import cell
from fusionbench.report.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 5
_ROW_INCHES = 0.155
_MOST_POINTS = 6000
"""Runs that are drawn one by one; of more, each cell shows the range."""
_READING = """\
Each point is one run, the bar its mean across the 95 % t interval over runs, the dashed line
chance. Intervals that overlap may still hide a paired difference, and the other way round: methods
are compared in the figure of differences."""


def draw(material: Material, name: str = "scores") -> Drawing | None:
    """A panel per task, methods down the side."""
    table = material.table
    if not table.tasks:
        return None
    return Drawing(
        name=name,
        title="Scores of every run" if name == "scores" else "Scores of every run, planted tasks",
        reading=_READING,
        figure=_figure(material),
        data=list(_rows(material)),
    )


def _rows(material: Material) -> Iterator[Row]:
    table = material.table
    for row, label in enumerate(material.labels):
        for column, task in enumerate(table.tasks):
            for place, seed in enumerate(table.seeds):
                value = table.values[row, column, place]
                if not np.isnan(value):
                    yield {"method": label, "task": task.name, "seed": str(seed),
                           "score": f"{value:.6f}", "chance": f"{task.chance:.6f}"}  # fmt: skip


def _figure(material: Material) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    table = material.table
    columns = min(_COLUMNS, len(table.tasks))
    rows = -(-len(table.tasks) // columns)
    height = rows * (len(table.methods) * _ROW_INCHES + 0.65) + 0.1
    figure = Figure(figsize=(1.7 + 1.75 * columns, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels[0, 0].set_yticks(range(len(table.methods)), material.labels)
    panels[0, 0].set_ylim(len(table.methods) - 0.4, -0.6)
    for index, panel in enumerate(panels.flat):
        if index % columns:
            panel.yaxis.set_visible(False)
        if index < len(table.tasks):
            _panel(panel, material, index)
        else:
            panel.set_visible(False)
    chance = Line2D([], [], color=GUIDE, linestyle="--", label="chance")
    legend(figure, [*where_handles(), chance])
    return figure


def _panel(panel: "Axes", material: Material, column: int) -> None:
    table = material.table
    task, rows = table.tasks[column], range(len(table.methods))
    across = panel.get_yaxis_transform()
    panel.hlines(rows, 0, 1, colors=GRID, linewidth=0.6, transform=across, zorder=0)
    panel.axvline(100 * task.chance, color=GUIDE, linestyle=(0, (3, 2)), linewidth=0.9, zorder=1)
    for color, marker, inside in ((ON_FEATURES, "o", False), (IN_ENCODER, "^", True)):
        here = [row for row in rows if material.in_encoder[row] == inside]
        _runs(panel, material, column, here, (color, marker))
    panel.set_title(wrapped(task.name))
    panel.set_xlabel(f"{task.metric}, % of {task.examples}")


def _runs(
    panel: "Axes", material: Material, column: int, rows: Sequence[int], look: tuple[str, str]
) -> None:
    """Points, intervals and means of the methods in `rows`."""
    table, (color, marker) = material.table, look
    found = {row: cell(table, row, column) for row in rows}
    for row, summary in found.items():
        if not summary.runs:
            panel.annotate(summary.why, (0.5, row), xycoords=("axes fraction", "data"),
                           color=GUIDE, ha="center", va="center", fontsize=SMALL)  # fmt: skip
    ran = [row for row, summary in found.items() if summary.runs]
    scores = 100 * table.values[ran, column]
    height = np.broadcast_to(np.array(ran, dtype=float)[:, None], scores.shape)
    present = ~np.isnan(scores)
    if table.values.size <= _MOST_POINTS:
        panel.plot(scores[present], height[present], marker, markersize=3, color=color, alpha=0.45,
                   markeredgewidth=0, linestyle="")  # fmt: skip
    elif ran:
        panel.hlines(ran, np.nanmin(scores, axis=1), np.nanmax(scores, axis=1), colors=color,
                     linewidth=3, alpha=0.3)  # fmt: skip
    several = [row for row in ran if found[row].runs > 1]
    low = [max(0.0, 100 * found[row].low) for row in several]
    high = [min(100.0, 100 * found[row].high) for row in several]
    panel.hlines(several, low, high, colors=color, linewidth=0.9)
    means = [100 * found[row].mean for row in ran]
    panel.plot(means, ran, "|", markersize=7, markeredgewidth=1.6, color=color)
