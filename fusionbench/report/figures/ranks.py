"""Average ranks over tasks of one method per family, with Nemenyi's critical difference."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import UserError
from fusionbench.report.figures.panels import FigureData, representatives
from fusionbench.report.figures.style import BLUE, GRID, GUIDE, INK, SMALL, Drawing
from fusionbench.stats.estimate import FEWEST_REPLICATES
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.ranks import RankTable, rank_intervals, rank_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_READING = """\
Rank 1 is the best. The point is the average over tasks; the thin line is the range of average ranks
when runs and images are resampled, which adds noise and so moves ranks towards the middle. Bars on
the right join methods within one critical difference (Nemenyi, 5 %), here {share:.0f} % of the
range of ranks. Tasks are the only replicates and related methods violate the test's assumptions, so
the figure is descriptive and no verdict uses it. One method per family, chosen by name."""
_FRIEDMAN = " Friedman's test that tasks rank methods at random: p = {p:.2g}."
_KEY = 20260
"""Seed of the resampling: the same records give the same range."""


def draw_ranks(data: FigureData) -> Drawing | None:
    """Average ranks; None for fewer than three methods or two tasks."""
    methods = representatives(data, complete=True)
    if len(methods) < 3 or len(data.table.tasks) < 2:
        return None
    means = data.table.values[methods].mean(axis=-1)
    # Without rounding, equal scores could differ in their last bits and not share a rank.
    ranks = rank_table(np.round(means, 12))
    rows = _rows(data, methods, ranks)
    enough = len(data.table.seeds) >= FEWEST_REPLICATES
    friedman = _FRIEDMAN.format(p=ranks.p_value) if enough else ""
    return Drawing(
        name="ranks",
        title="Average ranks",
        reading=_READING.format(share=100 * ranks.critical_share) + friedman,
        figure=_figure(rows, ranks, len(data.table.tasks)),
        rows=rows,
    )


def separated(average: Float[np.ndarray, " method"], difference: float) -> list[tuple[int, int]]:
    """Maximal groups (first, last) of sorted ranks that lie within one critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(average)):
        last = int(np.flatnonzero(average <= average[first] + difference)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def _rows(data: FigureData, methods: list[int], ranks: RankTable) -> "pd.DataFrame":
    """One row per method, the best first."""
    import pandas as pd

    low, high = _intervals(data, methods)
    frame = pd.DataFrame({
        "method": [data.labels[row] for row in methods],
        "average_rank": ranks.average, "low": low, "high": high,
        "critical_difference": ranks.critical_difference, "friedman_p": ranks.p_value,
    })  # fmt: skip
    return frame.sort_values("average_rank", kind="stable", ignore_index=True)


def _intervals(data: FigureData, methods: list[int]) -> Float[np.ndarray, "2 method"]:
    """Ends of the rank intervals; NaN with one run, or where examples are missing or differ."""
    table = data.table
    unknown = np.full((2, len(methods)), np.nan)
    scopes = {record.seed_scope for row in methods for record in table.row(row)}
    if len(table.seeds) < 2 or len(scopes) > 1:
        return unknown
    try:
        tasks = [_outcomes(data, methods, task) for task in range(len(table.tasks))]
    except UserError:
        return unknown
    known = [task for task in tasks if task is not None]
    if len(known) < len(tasks):
        return unknown
    return np.stack(rank_intervals(known, scopes.pop(), rng=np.random.default_rng(_KEY)))


def _outcomes(data: FigureData, methods: list[int], task: int) -> TaskScores | None:
    """Outcomes of all runs on a task; None if they were scored on different examples."""
    records = [data.table.runs(row, task) for row in methods]
    if len({record.items for runs in records for record in runs}) > 1:
        return None
    results = data.results
    values = np.array([[results.outcomes(run) for run in runs] for runs in records], dtype=float)
    return TaskScores(values=values, groups=results.images(records[0][0]))


def _figure(rows: "pd.DataFrame", ranks: RankTable, tasks: int) -> "Figure":
    from matplotlib.figure import Figure

    count = len(rows)
    figure = Figure(figsize=(6.2, 0.24 * count + 1.0), layout="constrained")
    axes = figure.subplots()
    axes.hlines(rows.index, 1, count, colors=GRID, linewidth=0.6, zorder=0)
    axes.hlines(rows.index, rows["low"], rows["high"], colors=BLUE, linewidth=0.9)
    axes.plot(rows["average_rank"], rows.index, "o", color=BLUE, markersize=5)
    axes.set_yticks(range(count), rows["method"])
    axes.set_ylim(count - 0.4, -1.4)
    axes.set_xlim(0.9, count + 0.1)
    axes.set_xticks(range(1, count + 1))
    axes.set_xlabel(f"average rank over {tasks} tasks (1 is the best)")
    _critical_difference(axes, ranks)
    _bars(axes, separated(rows["average_rank"].to_numpy(), ranks.critical_difference))
    return figure


def _critical_difference(axes: "Axes", ranks: RankTable) -> None:
    width = ranks.critical_difference
    axes.plot([1, 1 + width], [-0.9, -0.9], color=INK, linewidth=2, marker="|", clip_on=False)
    axes.annotate(
        f"critical difference {width:.1f}, {100 * ranks.critical_share:.0f} % of the range",
        (1 + width, -0.9), (5, 0), textcoords="offset points", va="center", fontsize=SMALL,
        color=INK,
    )  # fmt: skip


def _bars(axes: "Axes", groups: list[tuple[int, int]]) -> None:
    """Bars right of the axes, one for each group of methods that are not separated."""
    transform = axes.get_yaxis_transform()
    for position, (first, last) in enumerate(groups):
        place = 1.02 + 0.018 * position
        axes.plot([place, place], [first - 0.2, last + 0.2], color=GUIDE, linewidth=2.5,
                  transform=transform, clip_on=False, solid_capstyle="butt")  # fmt: skip
