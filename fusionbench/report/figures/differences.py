"""Differences from the baseline as a figure needs them: from the contrasts' rows, or from runs.

With fewer than four runs there is no test and no interval worth drawing; then the paired runs
themselves are the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from fusionbench.report.figures.material import Material
from fusionbench.report.figures.style import (
    BLUE,
    GRID,
    GUIDE,
    INK,
    SMALL,
    VERMILLION,
    Drawing,
    legend,
    wrapped,
)
from fusionbench.report.tables import Row, aggregates
from fusionbench.stats.estimate import FEWEST_REPLICATES

_ALPHA = 0.05
_PLANNED = ("planned", "followup")
Scope = tuple[str, str]
"""What is compared: ("suite", "suite"), ("group", "fine"), ("task", "digits")."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One method against its baseline in one scope, in points; NaN where nothing was computed."""

    scope: Scope
    method: str
    label: str
    """The method, with its baseline where that is not the study's."""
    baseline: str
    value: float
    interval: tuple[float, float]
    """95 %, for new runs on new images: the one that verdicts rest on."""
    testset: tuple[float, float]
    """95 %, for new runs on this test set."""
    p_adjusted: float
    verdict: str
    mde: float
    seeds: int
    planned: bool
    runs: Float[np.ndarray, " seed"]
    """The paired differences of single runs; empty where they are not known."""

    @property
    def tested(self) -> bool:
        """Whether there are enough runs for a test."""
        return self.seeds >= FEWEST_REPLICATES and bool(np.isfinite(self.interval).all())

    @property
    def decided(self) -> bool:
        """Whether the corrected test found a difference."""
        return self.tested and self.p_adjusted < _ALPHA


def differences(material: Material) -> list[Difference]:
    """From the rows of the contrasts where there are any, else from the paired runs."""
    if material.contrasts:
        return [_from_row(material, row) for row in material.contrasts]
    return list(_from_runs(material))


def _from_row(material: Material, row: Row) -> Difference:
    scope = (row["scope"], row["name"])
    return Difference(
        scope=scope,
        method=row["method"],
        label=_label(material, row["method"], row["baseline"]),
        baseline=row["baseline"],
        value=_points(row, "delta"),
        interval=(_points(row, "low"), _points(row, "high")),
        testset=(_points(row, "testset_low"), _points(row, "testset_high")),
        p_adjusted=_points(row, "p_adjusted") / 100,
        verdict=row.get("verdict", ""),
        mde=_points(row, "mde"),
        seeds=int(float(row.get("n_seeds") or 0)),
        planned=row.get("kind", "") in _PLANNED,
        runs=_runs(material, row["method"], row["baseline"], scope),
    )


def _label(material: Material, method: str, baseline: str) -> str:
    row = material.row(method)
    name = method if row is None else material.labels[row]
    return name if baseline == material.baseline else f"{name} - {baseline}"


def _points(row: Row, key: str) -> float:
    value = row.get(key)
    return float("nan") if value is None else 100 * round(float(value), 6) + 0.0


def _from_runs(material: Material) -> Iterator[Difference]:
    table = material.table
    if material.row(material.baseline) is None:
        return
    scopes = [_named(name) for name, _ in aggregates(table)]
    scopes += [("task", task.name) for task in table.tasks]
    for method in table.methods:
        if method == material.baseline:
            continue
        leaky = material.row(method) in table.leaky
        for scope in [one for one in scopes if one[0] == "task" or not leaky]:
            runs = _runs(material, method, material.baseline, scope)
            if len(runs):
                yield _untested(material, method, scope, runs)


def _named(aggregate: str) -> Scope:
    return ("suite" if aggregate == "suite" else "group", aggregate)


def _untested(
    material: Material, method: str, scope: Scope, runs: Float[np.ndarray, " seed"]
) -> Difference:
    nothing = (float("nan"), float("nan"))
    return Difference(
        scope=scope, method=method,
        label=_label(material, method, material.baseline), baseline=material.baseline,
        value=float(runs.mean()),
        interval=nothing, testset=nothing, p_adjusted=float("nan"), verdict="", mde=float("nan"),
        seeds=len(runs), planned=method in material.planned, runs=runs,
    )  # fmt: skip


def _runs(
    material: Material, method: str, baseline: str, scope: Scope
) -> Float[np.ndarray, " seed"]:
    """Paired differences in points; a seed counts where both ran on every task of the scope.

    Over several tasks a point is a hundredth of the way from chance to all right, as in the
    contrasts, so that every task counts the same.
    """
    row, other = material.row(method), material.row(baseline)
    keep = _tasks(material, scope)
    if row is None or other is None or not keep.any():
        return np.empty(0)
    table = material.table
    apart = 100 * (table.values[row, keep] - table.values[other, keep])
    if scope[0] != "task":
        chance = np.array([task.chance for task in table.tasks])[keep]
        apart = apart / (1 - chance)[:, None]
    apart = apart.mean(axis=0)
    return apart[~np.isnan(apart)]


def _tasks(material: Material, scope: Scope) -> Bool[np.ndarray, " task"]:
    kind, name = scope
    if kind == "task":
        return np.array([task.name == name for task in material.table.tasks], dtype=np.bool_)
    found: Mapping[str, Bool[np.ndarray, " task"]] = dict(aggregates(material.table))
    return found.get(name, found["suite"] if kind == "suite" else np.zeros(0, dtype=np.bool_))


def as_rows(found: Sequence[Difference]) -> list[Row]:
    """Points with all that is drawn, for programs; single runs joined by spaces."""
    return [
        {
            "scope": one.scope[0],
            "name": one.scope[1],
            "method": one.method,
            "baseline": one.baseline,
            "difference": f"{one.value:.4f}",
            "low": _text(one.interval[0]),
            "high": _text(one.interval[1]),
            "testset_low": _text(one.testset[0]),
            "testset_high": _text(one.testset[1]),
            "p_adjusted": _text(one.p_adjusted),
            "verdict": one.verdict,
            "n_seeds": str(one.seeds),
            "planned": str(one.planned).lower(),
            "runs": " ".join(f"{value:.4f}" for value in one.runs),
        }
        for one in found
    ]


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4f}"


# Forest plots: how far each method lies from the baseline, for the suite and for each task.


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_COLUMNS = 5
_ROW_INCHES = 0.155
_MOST_POINTS = 20
"""Of more runs, the range is drawn."""
_TESTED = """\
The mark is the difference from {baseline} in points, right is better. The thin line is its 95 %
interval for new runs on new images, which the verdict rests on; the thick one is for new runs on
this very test set and is often too short. A filled mark differs from the baseline after correction
within its family; orange is planned, blue exploratory. The grey band is the margin that was
declared not to matter. Over several tasks a point is a hundredth of the way from chance to all
right, so that tasks count the same. Each interval stands for itself: two methods are not compared
with each other by looking whether theirs overlap."""
_UNTESTED = """\
Each point is one seed: the method minus {baseline} on the same seed, in points, right is better;
the bar is their mean. With fewer than four runs no interval is drawn and no test is printed:
points on both sides of the line say that the sign itself is open. Over several tasks a point is a
hundredth of the way from chance to all right, so that tasks count the same. The grey band is the
margin that was declared not to matter."""


def draw_suite(material: Material) -> Drawing | None:
    """The suite and its groups."""
    return _draw(material, ("suite", "group"), "differences", "Differences over the suite")


def draw_tasks(material: Material) -> Drawing | None:
    """A panel per task."""
    return _draw(material, ("task",), "differences-tasks", "Differences per task")


def _draw(material: Material, kinds: Sequence[str], name: str, title: str) -> Drawing | None:
    everything = differences(material)
    found = [one for one in everything if one.scope[0] in kinds]
    if not found:
        return None
    tested = any(one.tested for one in found)
    baselines = sorted({one.baseline for one in found})
    reading = (_TESTED if tested else _UNTESTED).format(baseline=" or ".join(baselines))
    few = any(not one.tested for one in found)
    reading += (
        " Rows of points are comparisons with too few runs for a test." if (tested and few) else ""
    )
    return Drawing(
        name=name,
        title=title,
        reading=reading,
        figure=_figure(material, found, _methods(everything)),
        data=as_rows(found),
    )


def _methods(found: Sequence[Difference]) -> list[str]:
    """Planned ones first, then by the difference over the suite; the same order in all panels."""
    # A comparison that could not be made has no value, and nothing can be sorted by NaN.
    suite = {
        one.label: one.value for one in found if one.scope[0] == "suite" and np.isfinite(one.value)
    }
    planned = {one.label for one in found if one.planned}
    return sorted(
        {one.label for one in found},
        key=lambda name: (name not in planned, -suite.get(name, -np.inf), name),
    )


def _figure(material: Material, found: Sequence[Difference], methods: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure

    scopes = list(dict.fromkeys(one.scope for one in found))
    suite = scopes[0][0] != "task"
    columns = min(4 if suite else _COLUMNS, len(scopes))
    lines = -(-len(scopes) // columns)
    size = (1.8 + (2.2 if suite else 1.75) * columns, lines * (len(methods) * _ROW_INCHES + 0.65))
    figure = Figure(figsize=(max(size[0], 5.0), size[1] + 0.1), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, sharex=suite, squeeze=False)
    panels[0, 0].set_yticks(range(len(methods)), methods)
    panels[0, 0].set_ylim(len(methods) - 0.4, -0.6)
    for index, panel in enumerate(panels.flat):
        if index % columns:
            panel.yaxis.set_visible(False)
        panel.set_visible(index < len(scopes))
        panel.tick_params(axis="x", labelbottom=True)
        if index < len(scopes):
            here = [one for one in found if one.scope == scopes[index]]
            _panel(panel, here, methods, material.margins)
            panel.set_title(_title(scopes[index]))
    legend(figure, _handles(found))
    return figure


def _title(scope: Scope) -> str:
    kind, name = scope
    if kind == "task":
        return wrapped(name)
    return "all tasks of the suite" if kind == "suite" else wrapped(f"{name} tasks", 30)


def _panel(
    panel: "Axes",
    found: Sequence[Difference],
    methods: Sequence[str],
    margins: tuple[float, float],
) -> None:
    margin = margins[found[0].scope[0] == "task"]
    panel.axvspan(-margin, margin, color=GRID, alpha=0.6, linewidth=0, zorder=0)
    panel.axvline(0, color=GUIDE, linewidth=0.8, zorder=1)
    panel.hlines(range(len(methods)), 0, 1, colors=GRID, linewidth=0.5,
                 transform=panel.get_yaxis_transform(), zorder=0)  # fmt: skip
    rows = {name: row for row, name in enumerate(methods)}
    placed = [(rows[one.label], one) for one in found if np.isfinite(one.value)]
    for planned in (False, True):
        here = [(row, one) for row, one in placed if one.planned == planned]
        _intervals(panel, [(row, one) for row, one in here if one.tested], planned)
        _points_forest(panel, [(row, one) for row, one in here if not one.tested], planned)
    for row in sorted(set(rows.values()) - {row for row, _ in placed}):
        panel.annotate("not run", (0.98, row), xycoords=("axes fraction", "data"),
                       color=GUIDE, ha="right", va="center", fontsize=SMALL)  # fmt: skip
    task = found[0].scope[0] == "task"
    panel.set_xlabel("difference, points" if task else "difference, points above chance")


Placed = Sequence[tuple[int, Difference]]
"""Differences with the row where each is drawn."""


def _intervals(panel: "Axes", placed: Placed, planned: bool) -> None:
    """Both intervals and the mark, few artists however many rows."""
    color, marker = (VERMILLION, "D") if planned else (BLUE, "o")
    ends = np.array([one.interval for _, one in placed]).reshape(-1, 2)
    panel.hlines([row for row, _ in placed], ends[:, 0], ends[:, 1], colors=color, linewidth=0.9)
    known = [(row, one.testset) for row, one in placed if np.isfinite(one.testset).all()]
    ends = np.array([testset for _, testset in known]).reshape(-1, 2)
    panel.hlines(
        [row for row, _ in known], ends[:, 0], ends[:, 1], colors=color, linewidth=3.2, alpha=0.35
    )
    for decided in (False, True):
        here = [(row, one.value) for row, one in placed if one.decided == decided]
        panel.plot([value for _, value in here], [row for row, _ in here], marker, markersize=4,
                   color=color, markerfacecolor=color if decided else "white")  # fmt: skip


def _points_forest(panel: "Axes", placed: Placed, planned: bool) -> None:
    """The paired runs one by one, or their range where there are many, and the mean."""
    color = VERMILLION if planned else BLUE
    many = [(row, one.runs) for row, one in placed if len(one.runs) > _MOST_POINTS]
    ends = np.array([(runs.min(), runs.max()) for _, runs in many]).reshape(-1, 2)
    panel.hlines(
        [row for row, _ in many], ends[:, 0], ends[:, 1], colors=color, linewidth=3.2, alpha=0.35
    )
    few = [(row, x) for row, one in placed if len(one.runs) <= _MOST_POINTS for x in one.runs]
    panel.plot([x for _, x in few], [row for row, _ in few], "o", markersize=3.2, color=color,
               alpha=0.5, markeredgewidth=0)  # fmt: skip
    panel.plot([one.value for _, one in placed], [row for row, _ in placed], "|", markersize=8,
               markeredgewidth=1.6, color=color)  # fmt: skip


def _handles(found: Sequence[Difference]) -> list["Line2D"]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=GUIDE, linewidth=0.8, label="no difference"),
               Line2D([], [], color=GRID, linewidth=6, label="margin")]  # fmt: skip
    if any(not one.tested for one in found):
        handles.append(Line2D([], [], color=INK, marker="o", markersize=3.2, alpha=0.5,
                              linestyle="", label="one seed (no test is printed)"))  # fmt: skip
    if any(one.tested for one in found):
        handles += [
            Line2D([], [], color=INK, linewidth=0.9, label="new runs and images"),
            Line2D([], [], color=INK, linewidth=3.2, alpha=0.35, label="this test set"),
            Line2D([], [], color=INK, marker="o", markersize=4, linestyle="", label="differs"),
        ]
    kinds = ((VERMILLION, "D", "planned", True), (BLUE, "o", "exploratory", False))
    handles += [
        Line2D([], [], color=color, marker=marker, markersize=4, linestyle="", label=label)
        for color, marker, label, planned in kinds
        if any(one.planned == planned for one in found)
    ]
    return handles
