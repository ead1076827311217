"""Scores per task: every run a point, the mean a bar across its interval, chance a dashed line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusionbench.report.style import GRID, GUIDE, IN_ENCODER, ON_FEATURES, RC
from fusionbench.report.summary import cell
from fusionbench.report.tables import names
from fusionbench.scores import ScoreTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 5
_ROW_INCHES = 0.155


def plot_scores(table: ScoreTable, stem: Path) -> tuple[Path, Path]:
    """Draw a panel per task and save `<stem>.svg` and `<stem>.png`, the same bytes every time."""
    from matplotlib import rc_context, rcParams

    with rc_context():
        rcParams.update(dict(RC))
        figure = _draw(table)
        # Panels are laid out once, not once per file, and at the resolution of the bitmap.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
        figure.savefig(png, metadata={"Software": None})
    return svg, png


def _draw(table: ScoreTable) -> "Figure":
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(table.tasks))
    rows = -(-len(table.tasks) // columns)
    height = rows * (len(table.methods) * _ROW_INCHES + 0.65) + 0.35
    figure = Figure(figsize=(1.7 + 1.75 * columns, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels[0, 0].set_yticks(range(len(table.methods)), names(table))
    panels[0, 0].set_ylim(len(table.methods) - 0.4, -0.6)
    for index, panel in enumerate(panels.flat):
        if index % columns:
            panel.yaxis.set_visible(False)
        if index < len(table.tasks):
            _panel(panel, table, index)
        else:
            panel.set_visible(False)
    _legend(figure)
    return figure


def _panel(panel: "Axes", table: ScoreTable, column: int) -> None:
    task, rows = table.tasks[column], range(len(table.methods))
    across = panel.get_yaxis_transform()
    panel.hlines(rows, 0, 1, colors=GRID, linewidth=0.6, transform=across, zorder=0)
    panel.axvline(100 * task.chance, color=GUIDE, linestyle=(0, (3, 2)), linewidth=0.9, zorder=1)
    inside = [any(record.in_encoder for record in table.row(row)) for row in rows]
    for color, where in ((ON_FEATURES, False), (IN_ENCODER, True)):
        _runs(panel, table, column, [row for row in rows if inside[row] == where], color)
    panel.set_title(task.name)
    panel.set_xlabel(f"{task.metric}, % of {task.examples}")


def _runs(panel: "Axes", table: ScoreTable, column: int, rows: Sequence[int], color: str) -> None:
    """Points, intervals and means of the methods in `rows`."""
    found = {row: cell(table, row, column) for row in rows}
    for row, summary in found.items():
        if not summary.runs:
            panel.annotate(summary.why, (0.5, row), xycoords=("axes fraction", "data"),
                           color=GUIDE, ha="center", va="center", fontsize=6)  # fmt: skip
    ran = [row for row, summary in found.items() if summary.runs]
    scores = 100 * table.values[ran, column]
    height = np.broadcast_to(np.array(ran, dtype=float)[:, None], scores.shape)
    present = ~np.isnan(scores)
    panel.plot(scores[present], height[present], "o", markersize=3, color=color, alpha=0.45,
               markeredgewidth=0)  # fmt: skip
    several = [row for row in ran if found[row].runs > 1]
    low = [max(0.0, 100 * found[row].low) for row in several]
    high = [min(100.0, 100 * found[row].high) for row in several]
    panel.hlines(several, low, high, colors=color, linewidth=0.9)
    means = [100 * found[row].mean for row in ran]
    panel.plot(means, ran, "|", markersize=7, markeredgewidth=1.6, color=color)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=ON_FEATURES, marker="o", markersize=3, label="on cached features"),
        Line2D([], [], color=IN_ENCODER, marker="o", markersize=3, label="in the encoder"),
        Line2D([], [], color=GUIDE, linestyle="--", label="chance"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
