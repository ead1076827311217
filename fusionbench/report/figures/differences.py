"""Forest plots: paired difference of each method from its baseline, over the suite and per task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionbench.report.contrasts import ContrastRow
from fusionbench.report.figures.panels import FigureData, legend, method_panels, wrapped
from fusionbench.report.figures.style import (
    BLUE,
    GRID,
    GUIDE,
    INK,
    SMALL,
    VERMILLION,
    Drawing,
)
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.verdicts import ALPHA

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MOST_ROWS = 20
"""Planned contrasts, their controls, then the highest of the others; the CSV file has all."""
_MOST_POINTS = 20
"""With more runs, a bar from the lowest to the highest replaces the points."""
_NOT_DRAWN = ["level", "label", "decided", "tested"]
_MARGIN = """\
The grey band is the equivalence margin. Over several tasks differences are in chance-corrected
points (100 points from chance to every answer correct), so that tasks have equal weight."""
_TESTED = f"""\
The mark is the difference from {{baseline}} in points; right is better. The thin line is the 95 %
interval for new runs and new images, on which verdicts rest; the thick line is for new runs on this
test set and is often too short. A filled mark differs from the baseline after correction for the
number of comparisons. Orange is planned, blue exploratory. {_MARGIN} Each interval belongs to one
comparison with the baseline: overlap between two of them does not compare the two methods."""
_UNTESTED = f"""\
Each point is one seed: the method minus {{baseline}} with the same seed, in points; right is
better. The bar is their mean. With fewer than four runs no interval is drawn and no test is
printed: points on both sides of the line leave even the sign open. {_MARGIN}"""


def draw_suite(data: FigureData) -> Drawing | None:
    """A panel for the suite and one for each group of tasks; None without contrasts."""
    return _draw(data, ("suite", "group"), "differences", "Differences over the suite")


def draw_tasks(data: FigureData) -> Drawing | None:
    """A panel per task; None without contrasts."""
    return _draw(data, ("task",), "differences-tasks", "Differences per task")


def _draw(data: FigureData, levels: Sequence[str], name: str, title: str) -> Drawing | None:
    every = differences(data)
    found = every[every["level"].isin(levels)]
    if found.empty:
        return None
    reading = (_TESTED if found["tested"].any() else _UNTESTED).format(
        baseline=" or ".join(sorted(found["baseline"].unique()))
    )
    labels = shown(data, every)
    if len(labels) < every["label"].nunique():
        reading += (
            f" Drawn are the planned comparisons, their controls and the highest of the others, at "
            f"most {MOST_ROWS} rows; the CSV file has all."
        )
    if found["tested"].any() and not found["tested"].all():
        reading += " Rows of points are comparisons with too few runs for a test."
    runs = [" ".join(f"{value:.4f}" for value in values) for values in found["runs"]]
    return Drawing(
        name=name,
        title=title,
        reading=reading,
        figure=_figure(data, found[found["label"].isin(labels)], labels),
        rows=found.assign(scope=found["level"], runs=runs).drop(columns=_NOT_DRAWN),
    )


def differences(data: FigureData) -> "pd.DataFrame":
    """One row per contrast and scope, in points; NaN where nothing was measured.

    `low` and `high` are for new runs and new images, `testset_low` and `testset_high` for new runs
    on this test set (95 %). `runs` holds the differences of single runs, paired by seed.
    """
    import pandas as pd

    rows = pd.DataFrame([_row(data, row) for row in data.contrasts])
    if rows.empty:
        return pd.DataFrame(columns=["level"])
    rows["tested"] = (rows["n_seeds"] >= FEWEST_REPLICATES) & rows["low"].notna()
    rows["decided"] = rows["tested"] & (rows["p_adjusted"] < ALPHA)
    return rows


def _row(data: FigureData, row: ContrastRow) -> dict[str, object]:
    method, baseline, measured = row.contrast.method, row.contrast.baseline, row.measured
    low, high = _interval(measured.estimate)
    testset_low, testset_high = _interval(measured.runs)
    place = data.row(method)
    label = method if place is None else data.labels[place]
    return {
        "level": row.scope.level,
        "scope": row.scope.level,
        "name": row.scope.name,
        "method": method,
        "baseline": baseline,
        "label": label if baseline == data.baseline else f"{label} - {baseline}",
        "difference": 100 * float(measured.estimate.value) if measured.estimate else np.nan,
        "low": low,
        "high": high,
        "testset_low": testset_low,
        "testset_high": testset_high,
        "p_adjusted": np.nan if row.answer.p_adjusted is None else row.answer.p_adjusted,
        "verdict": row.answer.verdict,
        "n_seeds": len(measured.seeds),
        "planned": row.kind != "exploratory",
        "runs": () if measured.by_seed is None else tuple(100 * measured.by_seed),
    }


def _interval(estimate: Estimate | None) -> tuple[float, float]:
    """Ends in points; NaN without an estimate or with too few runs for a finite interval."""
    low, high = estimate.interval() if estimate else (np.inf, np.inf)
    return (100 * float(low), 100 * float(high)) if np.isfinite(low) else (np.nan, np.nan)


def shown(data: FigureData, every: "pd.DataFrame") -> list[str]:
    """The rows of all panels: planned ones first, then by difference over the suite."""
    controls = {row.contrast.control for row in data.contrasts if row.kind == "planned"} - {""}
    frame = every.groupby("label").agg(
        planned=("planned", "any"), control=("method", lambda names: names.isin(controls).any())
    )
    suite = every[every["level"] == "suite"].groupby("label")["difference"].last()
    frame = frame.join(suite).reset_index()
    kept = frame.sort_values(["planned", "control", "difference"], ascending=False)[:MOST_ROWS]
    return list(kept.sort_values(["planned", "difference"], ascending=False)["label"])


def _figure(data: FigureData, found: "pd.DataFrame", labels: Sequence[str]) -> "Figure":
    scopes = found.groupby(["level", "name"], sort=False)
    suite = found["level"].iloc[0] != "task"
    figure, panels = method_panels(
        labels, len(scopes), columns=4 if suite else 5, width=2.2 if suite else 1.75, sharex=suite
    )
    for panel, (scope, here) in zip(panels, scopes, strict=True):
        level, name = map(str, scope)
        _panel(panel, here, labels, data.margins[level == "task"])
        titles = {"task": wrapped(name), "suite": "all tasks of the suite"}
        panel.set_title(titles.get(level, wrapped(f"{name} tasks", 30)))
        panel.set_xlabel("difference, chance-corrected points" if suite else "difference, points")
    legend(figure, _handles(found))
    return figure


def _panel(panel: "Axes", found: "pd.DataFrame", labels: Sequence[str], margin: float) -> None:
    panel.axvspan(-margin, margin, color=GRID, alpha=0.6, linewidth=0, zorder=0)
    panel.axvline(0, color=GUIDE, linewidth=0.8, zorder=1)
    found = found.assign(row=found["label"].map({name: row for row, name in enumerate(labels)}))
    ran = found.dropna(subset="difference")
    for planned, here in ran.groupby("planned"):
        color, marker = (VERMILLION, "D") if planned else (BLUE, "o")
        _intervals(panel, here[here["tested"]], color, marker)
        _runs(panel, here[~here["tested"]], color)
    for row in sorted(set(range(len(labels))) - set(ran["row"])):
        panel.annotate("not compared", (0.98, row), xycoords=("axes fraction", "data"),
                       color=GUIDE, ha="right", va="center", fontsize=SMALL)  # fmt: skip


def _intervals(panel: "Axes", found: "pd.DataFrame", color: str, marker: str) -> None:
    """Both intervals and the mark of comparisons with a test."""
    panel.hlines(found["row"], found["low"], found["high"], colors=color, linewidth=0.9)
    known = found.dropna(subset=["testset_low", "testset_high"])
    panel.hlines(known["row"], known["testset_low"], known["testset_high"], colors=color,
                 linewidth=3.2, alpha=0.35)  # fmt: skip
    for decided, here in found.groupby("decided"):
        panel.plot(here["difference"], here["row"], marker, markersize=4, color=color,
                   markerfacecolor=color if decided else "white")  # fmt: skip


def _runs(panel: "Axes", found: "pd.DataFrame", color: str) -> None:
    """The single runs, or their range where there are many, and their mean."""
    many = found["runs"].map(len) > _MOST_POINTS
    panel.hlines(found["row"][many], found["runs"][many].map(min), found["runs"][many].map(max),
                 colors=color, linewidth=3.2, alpha=0.35)  # fmt: skip
    points = found[~many].explode("runs")
    panel.plot(points["runs"].astype(float), points["row"], "o", markersize=3.2, color=color,
               alpha=0.5, markeredgewidth=0)  # fmt: skip
    panel.plot(found["difference"], found["row"], "|", markersize=8, markeredgewidth=1.6,
               color=color)  # fmt: skip


def _handles(found: "pd.DataFrame") -> list["Line2D"]:
    """Legend entries of what the figure shows."""
    from matplotlib.lines import Line2D

    dot = {"marker": "o", "linestyle": "", "color": INK}
    looks: list[tuple[object, str, dict[str, Any]]] = [
        (True, "no difference", {"color": GUIDE, "linewidth": 0.8}),
        (True, "margin", {"color": GRID, "linewidth": 6}),
        (not found["tested"].all(), "one seed (no test is printed)",
         dot | {"markersize": 3.2, "alpha": 0.5}),
        (found["tested"].any(), "new runs and images", {"color": INK, "linewidth": 0.9}),
        (found["tested"].any(), "this test set", {"color": INK, "linewidth": 3.2, "alpha": 0.35}),
        (found["tested"].any(), "differs", dot | {"markersize": 4}),
        (found["planned"].any(), "planned",
         dot | {"color": VERMILLION, "marker": "D", "markersize": 4}),
        (not found["planned"].all(), "exploratory", dot | {"color": BLUE, "markersize": 4}),
    ]  # fmt: skip
    return [Line2D([], [], label=label, **look) for shown, label, look in looks if shown]
