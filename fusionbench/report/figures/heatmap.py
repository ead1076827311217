"""All scores at once: methods by tasks, each cell its mean."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fusionbench.report.figures.drawing import Drawing
from fusionbench.report.figures.material import Material
from fusionbench.report.style import (
    CELLS,
    GRID,
    INK,
    ON_DARK_CELL,
    ON_LIGHT_CELL,
    PAPER,
    SMALL,
)
from fusionbench.report.summary import Summary, across, cell
from fusionbench.report.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_READING = """\
The number is the mean score in percent; the colour says how much of the way from chance (dark) to
every answer right (light) it is, so that tasks with other chance levels can be looked at together.
Methods stand in the order of their mean over the suite; those without all of its tasks stand
last. Neighbouring numbers are not tested against each other here."""


def draw(material: Material) -> Drawing | None:
    """Methods by tasks, tasks by group."""
    if not material.table.tasks:
        return None
    found = _cells(material)
    return Drawing(
        name="heatmap",
        title="Scores of all methods on all tasks",
        reading=_READING,
        figure=_figure(material, found),
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


def _figure(material: Material, found: list[list[Summary]]) -> "Figure":
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
