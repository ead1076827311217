"""Scores: a heat map of all cells, and every run of every task."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fusionbench.report.figures.panels import (
    FigureData,
    encoder_handles,
    legend,
    method_panels,
    wrapped,
)
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
)
from fusionbench.report.tables import Summary, cell, suite_mean

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 6000
"""With more runs, a bar from the lowest to the highest run replaces the points of a cell."""
_READING_HEATMAP = """\
Numbers are mean scores in percent. Colour is the way from chance to all right, scaled to what is
reached, so tasks with different chance levels are comparable. `suite` is the mean of that way over
the tasks, and orders the methods; those that did not run on all of its tasks come last. The line is
under the baseline. No test compares neighbouring numbers."""
_READING_RUNS = """\
Each point is one run. The bar is the mean over runs with its 95 % t interval, the dashed line is
chance. Methods are compared by paired differences (see the figures of differences): whether two
intervals overlap here does not decide whether two methods differ."""


def draw_heatmap(data: FigureData) -> Drawing | None:
    """Methods by tasks, tasks ordered by group; None without tasks."""
    if not data.table.tasks:
        return None
    rows = _cells(data)
    return Drawing(
        name="heatmap",
        title="Scores of all methods on all tasks",
        reading=_READING_HEATMAP,
        figure=_heatmap(data, rows),
        rows=rows,
    )


def _cells(data: FigureData) -> "pd.DataFrame":
    """One row per method and task: mean score (0 to 1), number of runs and status."""
    import pandas as pd

    table = data.table
    found = [
        (label, task.name, summary.mean, summary.runs, "done" if summary.runs else summary.why)
        for row, label in enumerate(data.labels)
        for column, task in enumerate(table.tasks)
        for summary in [cell(table, row, column)]
    ]
    return pd.DataFrame(found, columns=["method", "task", "mean", "n_seeds", "status"])


def _order(data: FigureData) -> list[str]:
    """Labels by their mean over the suite; NaN last."""
    means = _suite_means(data)
    return [data.labels[row] for row in np.argsort(-means, kind="stable")]


def _suite_means(data: FigureData) -> Float[np.ndarray, " method"]:
    """From chance (0) to all right (1)."""
    table = data.table
    return np.array([suite_mean(table, row).mean for row in range(len(table.methods))])


def _heatmap(data: FigureData, rows: "pd.DataFrame") -> "Figure":
    import seaborn as sns
    from matplotlib.figure import Figure

    tasks = sorted(data.table.tasks, key=lambda task: (task.group, task.name))
    names = [task.name for task in tasks]
    shown = [*names, "suite"]
    cells = rows.set_index(["method", "task"]).unstack().reindex(_order(data))
    means, status = cells["mean"][names], cells["status"][names]
    chance = np.array([task.chance for task in tasks])
    size = (max(2.2 + 0.48 * len(shown), 4.0), 1.7 + 0.165 * len(means))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    suite = dict(zip(data.labels, _suite_means(data), strict=True))
    share = ((means - chance) / (1 - chance)).assign(suite=means.index.map(suite))
    found = share.to_numpy(dtype=float)
    found = found[~np.isnan(found)]
    low, high = max(float(found.min(initial=1)), 0), float(found.max(initial=0))
    low, high = (low, high) if high > low else (0.0, 1.0)
    numbers = means.assign(suite=share["suite"])
    sns.heatmap(
        share, ax=axes, cmap=CELLS, vmin=low, vmax=high, linewidths=0.8,
        linecolor=PAPER, annot=100 * numbers, fmt=".1f", annot_kws={"fontsize": SMALL},
        xticklabels=False, yticklabels=False,
        cbar_kws={"location": "bottom", "shrink": 0.6, "aspect": 40, "pad": 0.01},
    )  # fmt: skip
    _style_numbers(axes, (share.to_numpy() - low) / (high - low))
    _underline(axes, list(means.index), data)
    for row, column in np.argwhere(means.isna().to_numpy()):
        reason = status.to_numpy()[row, column]
        axes.text(column + 0.5, row + 0.53, reason, ha="center", va="center", fontsize=SMALL,
                  color=INK)  # fmt: skip
    axes.set(xlabel="", ylabel="")
    axes.set_yticks(np.arange(len(means)) + 0.5, means.index)
    axes.set_xticks(np.arange(len(shown)) + 0.5, shown, rotation=50, ha="left",
                    rotation_mode="anchor")  # fmt: skip
    axes.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=2)
    _name_groups(axes, [task.group for task in tasks])
    ticks = [low, (low + high) / 2, high]
    figure.axes[-1].set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    figure.axes[-1].set_xlabel("of the way from chance to all right")
    return figure


def _underline(axes: "Axes", labels: list[str], data: FigureData) -> None:
    """A line under the baseline's row."""
    row = data.row(data.baseline)
    if row is not None:
        place = labels.index(data.labels[row]) + 1
        axes.axhline(place, color=INK, linewidth=1.2)


def _style_numbers(axes: "Axes", share: Float[np.ndarray, "method task"]) -> None:
    """Replace seaborn's text colours: its white would turn dark on a dark page."""
    for number, value in zip(axes.texts, share[~np.isnan(share)], strict=True):
        number.set_color(ON_LIGHT_CELL if value > 0.5 else ON_DARK_CELL)
        number.set_y(number.get_position()[1] + 0.03)
        # Inside the panel: the layout need not measure a thousand of them.
        number.set_in_layout(False)


def _name_groups(axes: "Axes", groups: list[str]) -> None:
    """A line below the tasks of each group, and its name."""
    transform = axes.get_xaxis_transform()
    for group in sorted(set(groups)):
        first, count = groups.index(group), groups.count(group)
        axes.text(first + count / 2, -0.01, group, ha="center", va="top", transform=transform,
                  fontweight="bold")  # fmt: skip
        axes.plot([first + 0.1, first + count - 0.1], [0, 0], color=GRID, linewidth=2,
                  transform=transform, clip_on=False)  # fmt: skip


def draw_runs(data: FigureData, name: str = "scores") -> Drawing | None:
    """A panel per task with one row per method; None without tasks."""
    if not data.table.tasks:
        return None
    rows = _runs(data)
    return Drawing(
        name=name,
        title="Scores of every run" if name == "scores" else "Scores of every run, planted tasks",
        reading=_READING_RUNS,
        figure=_figure(data, rows),
        rows=rows[["method", "task", "seed", "score", "chance"]],
    )


def _runs(data: FigureData) -> "pd.DataFrame":
    """One row per finished run; `row` and `column` are its method and task in the table."""
    import pandas as pd

    table = data.table
    row, column, seed = np.nonzero(~np.isnan(table.values))
    return pd.DataFrame({
        "method": np.array(data.labels)[row],
        "task": np.array([task.name for task in table.tasks])[column],
        "seed": np.array(table.seeds)[seed],
        "score": table.values[row, column, seed],
        "chance": np.array([task.chance for task in table.tasks])[column],
        "row": row, "column": column, "in_encoder": np.array(data.in_encoder)[row],
    })  # fmt: skip


def _figure(data: FigureData, rows: "pd.DataFrame") -> "Figure":
    from matplotlib.lines import Line2D

    tasks = data.table.tasks
    figure, panels = method_panels(data.labels, len(tasks), columns=5, width=1.75)
    for column, (panel, task) in enumerate(zip(panels, tasks, strict=True)):
        _panel(panel, data, rows[rows["column"] == column], column)
        panel.set_title(wrapped(task.name))
        panel.set_xlabel(f"{task.metric}, % of {task.examples}")
    chance = Line2D([], [], color=GUIDE, linestyle="--", label="chance")
    legend(figure, [*encoder_handles(), chance])
    return figure


def _panel(panel: "Axes", data: FigureData, runs: "pd.DataFrame", column: int) -> None:
    chance = 100 * data.table.tasks[column].chance
    panel.axvline(chance, color=GUIDE, linestyle=(0, (3, 2)), linewidth=0.9, zorder=1)
    summaries = [cell(data.table, row, column) for row in range(len(data.labels))]
    for row, summary in enumerate(summaries):
        if not summary.runs:
            panel.annotate(summary.why, (0.5, row), xycoords=("axes fraction", "data"),
                           color=GUIDE, ha="center", va="center", fontsize=SMALL)  # fmt: skip
    many = data.table.values.size > _MOST_POINTS
    for inside, color, marker in ((False, ON_FEATURES, "o"), (True, IN_ENCODER, "^")):
        here = runs[runs["in_encoder"] == inside]
        _points(panel, here, color, "" if many else marker)
        _means(panel, {row: summaries[row] for row in here["row"].unique()}, color)


def _points(panel: "Axes", runs: "pd.DataFrame", color: str, marker: str) -> None:
    """A point per run, or a bar from the lowest to the highest run where there is no marker."""
    if marker:
        panel.scatter(100 * runs["score"], runs["row"], color=color, marker=marker, s=9, alpha=0.45,
                      linewidths=0)  # fmt: skip
    else:
        ends = 100 * runs.groupby("row")["score"].agg(["min", "max"])
        panel.hlines(ends.index, ends["min"], ends["max"], colors=color, linewidth=3, alpha=0.3)


def _means(panel: "Axes", summaries: dict[int, Summary], color: str) -> None:
    """A bar at each mean, in percent, and its interval clipped to 0 to 100."""
    rows = list(summaries)
    ends = 100 * np.array([(one.low, one.high) for one in summaries.values()]).reshape(-1, 2)
    low, high = ends.clip(0, 100).T
    panel.hlines(rows, low, high, colors=color, linewidth=0.9)
    means = [100 * one.mean for one in summaries.values()]
    panel.plot(means, rows, "|", markersize=7, markeredgewidth=1.6, color=color)
