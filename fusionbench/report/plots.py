"""Scores per task: every run a point, the mean a bar across its interval, chance a dashed line."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusionbench.report.style import GUIDE, IN_ENCODER, ON_FEATURES, RC
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
    for index, panel in enumerate(panels.flat):
        if index < len(table.tasks):
            _panel(panel, table, index)
        else:
            panel.set_visible(False)
    panels[0, 0].set_yticks(range(len(table.methods)), names(table))
    panels[0, 0].set_ylim(len(table.methods) - 0.4, -0.6)
    _legend(figure)
    return figure


def _panel(panel: "Axes", table: ScoreTable, column: int) -> None:
    task = table.tasks[column]
    panel.axvline(100 * task.chance, color=GUIDE, linestyle=(0, (3, 2)), linewidth=0.9)
    for row in range(len(table.methods)):
        _runs(panel, table, row, column)
    panel.set_title(task.name)
    panel.set_xlabel(f"{task.metric}, % of {task.examples}")


def _runs(panel: "Axes", table: ScoreTable, row: int, column: int) -> None:
    found = cell(table, row, column)
    if not found.runs:
        panel.annotate(found.why, (0.5, row), xycoords=("axes fraction", "data"), color=GUIDE,
                       ha="center", va="center", fontsize=6)  # fmt: skip
        return
    inside = any(record.in_encoder for record in table.row(row))
    color = IN_ENCODER if inside else ON_FEATURES
    scores = 100 * table.values[row, column]
    scores = scores[~np.isnan(scores)]
    panel.plot(scores, np.full(len(scores), row), "o", markersize=3, color=color, alpha=0.45,
               markeredgewidth=0)  # fmt: skip
    if found.runs > 1:
        ends = [max(0.0, 100 * found.low), min(100.0, 100 * found.high)]
        panel.plot(ends, [row, row], "-", linewidth=0.9, color=color)
    panel.plot([100 * found.mean], [row], "|", markersize=7, markeredgewidth=1.6, color=color)


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=ON_FEATURES, marker="o", markersize=3, label="on cached features"),
        Line2D([], [], color=IN_ENCODER, marker="o", markersize=3, label="in the encoder"),
        Line2D([], [], color=GUIDE, linestyle="--", label="chance"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
