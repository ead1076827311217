"""Average ranks over tasks of one method per family, with Nemenyi's critical difference."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import UserError
from fusionbench.report.figures.material import Material, representatives
from fusionbench.report.figures.style import (
    BLUE,
    GRID,
    GUIDE,
    INK,
    SMALL,
    Drawing,
    series,
    series_handles,
)
from fusionbench.report.tables import Row
from fusionbench.stats.estimate import FEWEST_REPLICATES
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.ranks import RankTable, performance_profile, rank_intervals, rank_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_READING_ranks = """\
Rank 1 is the best; the point is the average over tasks, the thin line where it lands when runs and
images are drawn again, which adds noise and so pulls towards the middle. Methods joined by a bar
on the right lie within one critical difference (Nemenyi, 5 %), here {share:.0f} % of the whole
range of ranks. Tasks are the only replicate here and near-relatives among the methods break the
theory, so this figure is descriptive and no verdict rests on it. One method per family, chosen by
name."""
_FRIEDMAN = " Friedman's test, whether tasks rank them at random: p = {p:.2g}."
_KEY = 20260

Ends = tuple[Float[np.ndarray, " method"], Float[np.ndarray, " method"]]


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    """Representatives with their ranks, the best first."""

    rows: Sequence[int]
    table: RankTable
    ends: Ends | None


def draw_ranks(material: Material) -> Drawing | None:
    """None for fewer than three methods or two tasks, where ranks say nothing."""
    rows = representatives(material, complete=True)
    if len(rows) < 3 or len(material.table.tasks) < 2:
        return None
    means = material.table.values[rows].mean(axis=-1)
    # Without this, equal scores would differ in their last bits and not share their ranks.
    ranked = _Ranked(rows=rows, table=rank_table(np.round(means, 12)), ends=_ends(material, rows))
    order = [int(place) for place in np.argsort(ranked.table.average, kind="stable")]
    share = 100 * ranked.table.critical_share
    return Drawing(
        name="ranks",
        title="Average ranks",
        reading=_READING_ranks.format(share=share) + _friedman(material, ranked.table),
        figure=_figure_ranks(material, ranked, order),
        data=_rows_ranks(material, ranked, order),
    )


def separated(average: Float[np.ndarray, " method"], difference: float) -> list[tuple[int, int]]:
    """Maximal runs (first, last) of sorted ranks that lie within one critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(average)):
        last = int(np.flatnonzero(average <= average[first] + difference)[-1])
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def _friedman(material: Material, table: RankTable) -> str:
    """Its p, unless the study has too few runs for any test to be printed."""
    enough = len(material.table.seeds) >= FEWEST_REPLICATES
    return _FRIEDMAN.format(p=table.p_value) if enough else ""


def _ends(material: Material, rows: Sequence[int]) -> Ends | None:
    """The band of each rank, or None with one run, or where examples are missing or differ."""
    if len(material.table.seeds) < 2:
        return None
    scopes = {record.seed_scope for row in rows for record in material.table.row(row)}
    try:
        tasks = [_outcomes(material, rows, task) for task in range(len(material.table.tasks))]
    except UserError:
        return None
    if len(scopes) > 1 or any(task is None for task in tasks):
        return None
    known = [task for task in tasks if task is not None]
    # A fixed key: the same records give the same band.
    return rank_intervals(known, scopes.pop(), rng=np.random.default_rng(_KEY))


def _outcomes(material: Material, rows: Sequence[int], task: int) -> TaskScores | None:
    records = [material.table.runs(row, task) for row in rows]
    if len({record.items for runs in records for record in runs}) > 1:
        return None
    results = material.results
    values = np.array([[results.outcomes(run) for run in runs] for runs in records], dtype=float)
    groups = results.images(records[0][0])
    return TaskScores(values=values, groups=groups)


def _figure_ranks(material: Material, ranked: _Ranked, order: Sequence[int]) -> "Figure":
    from matplotlib.figure import Figure

    count = len(order)
    figure = Figure(figsize=(6.2, 0.24 * count + 1.0), layout="constrained")
    axes = figure.subplots()
    average = ranked.table.average[order]
    axes.hlines(range(count), 1, count, colors=GRID, linewidth=0.6, zorder=0)
    if ranked.ends is not None:
        axes.hlines(range(count), ranked.ends[0][order], ranked.ends[1][order], colors=BLUE,
                    linewidth=0.9)  # fmt: skip
    axes.plot(average, range(count), "o", color=BLUE, markersize=5)
    axes.set_yticks(range(count), [material.labels[ranked.rows[place]] for place in order])
    axes.set_ylim(count - 0.4, -1.4)
    axes.set_xlim(0.9, count + 0.1)
    axes.set_xticks(range(1, count + 1))
    axes.set_xlabel(f"average rank over {len(material.table.tasks)} tasks (1 is the best)")
    _critical(axes, ranked.table)
    _joined(axes, separated(average, ranked.table.critical_difference))
    return figure


def _critical(axes: "Axes", table: RankTable) -> None:
    width = table.critical_difference
    axes.plot([1, 1 + width], [-0.9, -0.9], color=INK, linewidth=2, marker="|", clip_on=False)
    axes.annotate(
        f"critical difference {width:.1f}, {100 * table.critical_share:.0f} % of the range",
        (1 + width, -0.9), (5, 0), textcoords="offset points", va="center", fontsize=SMALL,
        color=INK,
    )  # fmt: skip


def _joined(axes: "Axes", groups: Sequence[tuple[int, int]]) -> None:
    across = axes.get_yaxis_transform()
    for position, (first, last) in enumerate(groups):
        place = 1.02 + 0.018 * position
        axes.plot([place, place], [first - 0.2, last + 0.2], color=GUIDE, linewidth=2.5,
                  transform=across, clip_on=False, solid_capstyle="butt")  # fmt: skip


def _rows_ranks(material: Material, ranked: _Ranked, order: Sequence[int]) -> list[Row]:
    low, high = ranked.ends if ranked.ends is not None else (None, None)
    return [
        {
            "method": material.labels[ranked.rows[place]],
            "average_rank": f"{ranked.table.average[place]:.6f}",
            "low": "" if low is None else f"{low[place]:.6f}",
            "high": "" if high is None else f"{high[place]:.6f}",
            "critical_difference": f"{ranked.table.critical_difference:.6f}",
            "friedman_p": f"{ranked.table.p_value:.6g}",
        }
        for place in order
    ]


# Performance profile: how often a run gets further than a threshold (Agarwal et al. 2021).


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 101
_READING_profile = """\
The share of all (run, task) scores that lie above a threshold; the threshold counts how much of
the way from chance (0) to every answer right (1) a run got. A curve further up and right is
better; curves that cross are better at different things. Drawn is one method per family, chosen by
name; thin grey lines are all others. Descriptive: no test belongs to it."""


def draw_profile(material: Material) -> Drawing | None:
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
        reading=_READING_profile,
        figure=_figure_profile(material, thresholds, curves),
        data=_rows_profile(material, thresholds, curves),
    )


def _normalised(material: Material) -> Float[np.ndarray, "method task seed"]:
    chance = np.array([task.chance for task in material.table.tasks])[:, None]
    return (material.table.values - chance) / (1 - chance)


def _figure_profile(
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


def _rows_profile(
    material: Material,
    thresholds: Float[np.ndarray, " threshold"],
    curves: dict[int, Float[np.ndarray, " threshold"]],
) -> list[Row]:
    return [
        {"method": material.labels[row], "threshold": f"{threshold:.4f}", "share": f"{share:.6f}"}
        for row, curve in sorted(curves.items())
        for threshold, share in zip(thresholds, curve, strict=True)
    ]
