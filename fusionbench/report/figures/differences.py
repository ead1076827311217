"""Differences from the baseline as a figure needs them: from the contrasts' rows, or from runs.

With fewer than four runs there is no test and no interval worth drawing; then the paired runs
themselves are the picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fusionbench.report.figures.material import Material
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
    return 100 * float(row.get(key) or "nan")


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
