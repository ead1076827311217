"""Scores per task: every run a point, the mean a bar across its interval, chance a dashed line."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from fusionbench.report.figures.material import Material, representatives
from fusionbench.report.figures.style import (
    CELLS,
    GRID,
    GUIDE,
    IN_ENCODER,
    INK,
    ON_DARK_CELL,
    ON_FEATURES,
    ON_LIGHT_CELL,
    PAPER,
    SMALL,
    Drawing,
    legend,
    series,
    series_handles,
    thin,
    where_handles,
    wrapped,
)
from fusionbench.report.tables import Row, Summary, across, cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS_scores = 5
_ROW_INCHES = 0.155
_MOST_POINTS = 6000
"""Runs that are drawn one by one; of more, each cell shows the range."""
_READING_scores = """\
Each point is one run, the bar its mean across the 95 % t interval over runs, the dashed line
chance. Intervals that overlap may still hide a paired difference, and the other way round: methods
are compared in the figure of differences."""


def draw_scores(material: Material, name: str = "scores") -> Drawing | None:
    """A panel per task, methods down the side."""
    table = material.table
    if not table.tasks:
        return None
    return Drawing(
        name=name,
        title="Scores of every run" if name == "scores" else "Scores of every run, planted tasks",
        reading=_READING_scores,
        figure=_figure_scores(material),
        data=list(_rows_scores(material)),
    )


def _rows_scores(material: Material) -> Iterator[Row]:
    table = material.table
    for row, label in enumerate(material.labels):
        for column, task in enumerate(table.tasks):
            for place, seed in enumerate(table.seeds):
                value = table.values[row, column, place]
                if not np.isnan(value):
                    yield {"method": label, "task": task.name, "seed": str(seed),
                           "score": f"{value:.6f}", "chance": f"{task.chance:.6f}"}  # fmt: skip


def _figure_scores(material: Material) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    table = material.table
    columns = min(_COLUMNS_scores, len(table.tasks))
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
            _panel_scores(panel, material, index)
        else:
            panel.set_visible(False)
    chance = Line2D([], [], color=GUIDE, linestyle="--", label="chance")
    legend(figure, [*where_handles(), chance])
    return figure


def _panel_scores(panel: "Axes", material: Material, column: int) -> None:
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


# All scores at once: methods by tasks, each cell its mean.


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_READING_heatmap = """\
The number is the mean score in percent; the colour says how much of the way from chance (dark) to
every answer right (light) it is, so that tasks with other chance levels can be looked at together.
Methods stand in the order of their mean over the suite; those without all of its tasks stand
last. Neighbouring numbers are not tested against each other here."""


def draw_heatmap(material: Material) -> Drawing | None:
    """Methods by tasks, tasks by group."""
    if not material.table.tasks:
        return None
    found = _cells(material)
    return Drawing(
        name="heatmap",
        title="Scores of all methods on all tasks",
        reading=_READING_heatmap,
        figure=_figure_heatmap(material, found),
        data=[row for _, row in sorted(_data(material, found).items())],
    )


def _cells(material: Material) -> list[list[Summary]]:
    table = material.table
    return [
        [cell(table, row, column) for column in range(len(table.tasks))]
        for row in range(len(table.methods))
    ]


def _data(material: Material, found: list[list[Summary]]) -> dict[tuple[int, int], Row]:
    table = material.table
    return {
        (row, column): {
            "method": material.labels[row],
            "task": task.name,
            "mean": f"{summary.mean:.6f}" if summary.runs else "",
            "n_seeds": str(summary.runs),
            "status": "done" if summary.runs else summary.why,
        }
        for row, line in enumerate(found)
        for column, (task, summary) in enumerate(zip(table.tasks, line, strict=True))
    }


def _order(material: Material) -> tuple[list[int], list[int]]:
    """Rows by their suite mean, columns by group and name."""
    table = material.table
    means = [across(table, row, table.suite).mean for row in range(len(table.methods))]
    rows = sorted(
        range(len(means)), key=lambda row: (np.isnan(means[row]), -np.nan_to_num(means[row]), row)
    )
    columns = sorted(
        range(len(table.tasks)), key=lambda col: (table.tasks[col].group, table.tasks[col].name)
    )
    return rows, columns


def _figure_heatmap(material: Material, found: list[list[Summary]]) -> "Figure":
    from matplotlib.figure import Figure

    rows, columns = _order(material)
    size = (2.2 + 0.48 * len(columns), 1.7 + 0.165 * len(rows))
    figure = Figure(figsize=(max(size[0], 4.0), size[1]), layout="constrained")
    axes = figure.subplots()
    share = _share(material, found)[np.ix_(rows, columns)]
    axes.set_facecolor(PAPER)
    mesh = axes.pcolormesh(share, cmap=CELLS, vmin=0, vmax=1, edgecolors=PAPER, linewidth=0.8)
    mesh.set_antialiased(True)
    axes.set_ylim(len(rows), 0)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [material.labels[row] for row in rows])
    tasks = [material.table.tasks[column] for column in columns]
    axes.set_xticks(
        np.arange(len(columns)) + 0.5, [task.name for task in tasks], rotation=50, ha="left",
        rotation_mode="anchor",
    )  # fmt: skip
    axes.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=2)
    axes.spines["bottom"].set_visible(False)
    _numbers(axes, [[found[row][column] for column in columns] for row in rows], share)
    _groups(axes, [task.group for task in tasks])
    bar = figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.01)
    bar.set_ticks([0, 0.5, 1], labels=["chance", "half way", "all right"])
    bar.outline.set_visible(False)
    return figure


def _share(material: Material, found: list[list[Summary]]) -> Float[np.ndarray, "method task"]:
    """How much of the way from chance to 1 each mean is."""
    chance = np.array([task.chance for task in material.table.tasks])
    means = np.array([[summary.mean for summary in line] for line in found])
    return (means - chance) / (1 - chance)


def _numbers(
    axes: "Axes", found: list[list[Summary]], share: Float[np.ndarray, "method task"]
) -> None:
    for row, line in enumerate(found):
        for column, summary in enumerate(line):
            light = share[row, column] > 0.5
            color = ON_LIGHT_CELL if light else ON_DARK_CELL
            text = f"{100 * summary.mean:.1f}" if summary.runs else summary.why
            number = axes.text(column + 0.5, row + 0.53, text, ha="center", va="center",
                               fontsize=SMALL, color=color if summary.runs else INK)  # fmt: skip
            # It lies inside the panel: the layout need not measure a thousand of them.
            number.set_in_layout(False)


def _groups(axes: "Axes", groups: list[str]) -> None:
    """A line between the groups of tasks and their names below."""
    across_x = axes.get_xaxis_transform()
    for group in sorted(set(groups)):
        first, count = groups.index(group), groups.count(group)
        axes.text(first + count / 2, -0.01, group, ha="center", va="top", transform=across_x,
                  fontweight="bold")  # fmt: skip
        axes.plot([first + 0.1, first + count - 0.1], [0, 0], color=GRID, linewidth=2,
                  transform=across_x, clip_on=False)  # fmt: skip


# Learning curves: the training loss of each task, a line per method.


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS_learning = 5
_READING_learning = """\
Training loss at evenly spaced steps, the mean over runs. It shows whether training had ended when
it was stopped and whether a method trained at all, not which one is better: a lower training loss
may be overfitting. Drawn is one method per family, chosen by name; thin grey lines are all
others."""

Curve = Float[np.ndarray, " point"]


def draw_learning(material: Material) -> Drawing | None:
    """A panel per task."""
    curves = _curves(material)
    if not curves:
        return None
    return Drawing(
        name="learning",
        title="Learning curves",
        reading=_READING_learning,
        figure=_figure_learning(material, curves),
        data=list(_rows_learning(material, curves)),
    )


def steps_of(points: int, steps: int) -> Int[np.ndarray, " point"]:
    """The steps (from 1) at which a record's losses were noted."""
    return np.linspace(0, steps - 1, points).round().astype(np.int64) + 1


def _curves(material: Material) -> dict[tuple[int, int], Curve]:
    """(row, task) -> mean loss over runs; runs of another length count for nothing."""
    found: dict[tuple[int, int], list[Curve]] = {}
    for (row, task, _), record in sorted(material.table.cells.items()):
        if record.status == "done" and record.loss:
            found.setdefault((row, task), []).append(np.array(record.loss, dtype=float))
    return {
        place: np.mean([loss for loss in losses if len(loss) == len(losses[0])], axis=0)
        for place, losses in found.items()
    }


def _figure_learning(material: Material, curves: Mapping[tuple[int, int], Curve]) -> "Figure":
    from matplotlib.figure import Figure

    tasks = material.table.tasks
    columns = min(_COLUMNS_learning, len(tasks))
    lines = -(-len(tasks) // columns)
    shown = representatives(material)
    figure = Figure(figsize=(max(1.95 * columns, 5.0), 1.55 * lines + 0.2), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for task, panel in enumerate(panels.flat):
        if task >= len(tasks):
            panel.set_visible(False)
            continue
        here = {row: curve for (row, column), curve in curves.items() if column == task}
        _panel_learning(panel, here, shown, material.table.condition.budget.steps)
        panel.set_title(wrapped(tasks[task].name))
        if task >= len(tasks) - columns:
            panel.set_xlabel("step")
        if task % columns == 0:
            panel.set_ylabel("training loss")
    legend(figure, series_handles([material.labels[row] for row in shown]))
    return figure


def _panel_learning(
    panel: "Axes", curves: Mapping[int, Curve], shown: list[int], steps: int
) -> None:
    others = (curve for row, curve in curves.items() if row not in shown)
    thin(panel, ((steps_of(len(one), steps), one) for one in others), width=0.5, alpha=0.4)
    for position, row in enumerate(shown):
        if row in curves:
            look, curve = series(position), curves[row]
            panel.plot(steps_of(len(curve), steps), curve, color=look.color, linestyle=look.line,
                       linewidth=1.1, marker=look.marker, markersize=3.5,
                       markevery=(2 * position % 8, 8))  # fmt: skip
    panel.grid(visible=True, axis="y", color=GRID)
    panel.margins(x=0.02)


def _rows_learning(material: Material, curves: Mapping[tuple[int, int], Curve]) -> Iterator[Row]:
    table = material.table
    for (row, task), curve in curves.items():
        for step, loss in zip(
            steps_of(len(curve), table.condition.budget.steps), curve, strict=True
        ):
            yield {"method": material.labels[row], "task": table.tasks[task].name,
                   "step": str(step), "loss": f"{loss:.6f}"}  # fmt: skip
