"""The planned contrasts of one condition, and the measured difference of two methods.

Planned are the contrasts that a study declares. A study without any gets one contrast per family
of methods, against its baseline and the family's matched control, in the order of the request and
at most twelve; names decide, never scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import unknown
from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Request
from fusionbench.records.pairs import Measured, Results, corrected_weights, measure, minus
from fusionbench.records.scores import ScoreTable
from fusionbench.stats.verdicts import SUITE_MARGIN, TASK_MARGIN
from fusionbench.study.contrasts import MOST_PLANNED, SUITE, Contrast, read_contrasts

BASELINE = "penultimate"
_NO_CONTROL = "none"
_REFERENCE = "none: it is a "
"""Start of the control field of a method that is a control or a baseline itself."""


@dataclass(frozen=True, kw_only=True)
class ContrastPlan:
    """The planned contrasts of one condition and their margins (shares of a score)."""

    baseline: str
    contrasts: tuple[Contrast, ...] = ()
    """`control` is a name of the table, or empty where none exists."""
    suite_margin: float = SUITE_MARGIN
    task_margin: float = TASK_MARGIN
    notes: tuple[str, ...] = ()


def make_plan(
    table: ScoreTable, runs: Sequence[Request], baseline: str | None = None
) -> ContrastPlan:
    """The plan of the last request. Raises UserError for a baseline that was never run.

    A baseline other than the study's was chosen after the run: nothing is planned then.
    """
    study: Mapping[str, object] = runs[-1].study if runs else {}
    declared = str(study.get("baseline", BASELINE))
    if baseline is not None and baseline not in table.methods:
        raise unknown("method", baseline, table.methods, "the baseline must be among the records")
    suite_margin, task_margin = _margins(study)
    contrasts: tuple[Contrast, ...] = ()
    notes = _changes(runs)
    if baseline not in (None, declared):
        notes += (
            f"The baseline {baseline} is not the study's ({declared}): nothing here is planned, "
            "all comparisons are exploratory.",
        )
    else:
        contrasts, more = _contrasts(table, runs, declared)
        notes += more
    return ContrastPlan(
        baseline=baseline or declared,
        contrasts=contrasts,
        suite_margin=suite_margin,
        task_margin=task_margin,
        notes=notes,
    )


def control_of(table: ScoreTable, method: int) -> str:
    """The matched control of a method in its records; empty if they name none."""
    return table.controls[method]


def _contrasts(
    table: ScoreTable, runs: Sequence[Request], baseline: str
) -> tuple[tuple[Contrast, ...], tuple[str, ...]]:
    stated = runs[-1].study.get("contrasts", ()) if runs else ()
    if stated:
        return read_contrasts(stated, baseline), ()
    order = runs[-1].labels if runs else ()
    methods = _representatives(table, order, baseline)
    kept = methods[:MOST_PLANNED]
    notes = ["The study names no contrasts: one method of each family is compared."]
    if len(methods) > len(kept):
        left = ", ".join(methods[MOST_PLANNED:])
        notes.append(f"Only {MOST_PLANNED} can be planned; exploratory instead: {left}.")
    return tuple(Contrast(method=name, baseline=baseline) for name in kept), tuple(notes)


def _representatives(table: ScoreTable, order: Sequence[str], baseline: str) -> list[str]:
    """One method of each family: the declared one, else the first of the request."""
    place = {label: index for index, label in enumerate(order)}
    found: dict[str, list[tuple[bool, int, str]]] = {}
    for row, name in enumerate(table.methods):
        first = table.row(row)[0]
        if name == baseline or row in table.leaky or _is_reference(first):
            continue
        family = first.family or first.spec.method
        rank = (not first.representative, place.get(first.label, len(place)), name)
        found.setdefault(family, []).append(rank)
    best = sorted(min(ranks)[1:] for ranks in found.values())
    return [name for _, name in best]


def _is_reference(record: CellRecord) -> bool:
    return record.control.startswith(_REFERENCE)


def resolved(table: ScoreTable, contrast: Contrast) -> tuple[Contrast, str]:
    """The contrast with its control filled in, and why it cannot be decided (or nothing)."""
    groups = {task.group for task in table.tasks}
    if contrast.over != SUITE and contrast.over not in groups:
        return contrast, f"no task of the group {contrast.over}"
    for name in (contrast.method, contrast.baseline):
        if name not in table.methods:
            return contrast, _absent(table, name)
    row = table.methods.index(contrast.method)
    if row in table.leaky:
        return contrast, f"{contrast.method} reads the answers in training"
    control = contrast.control or control_of(table, row)
    if control.startswith(_NO_CONTROL) or control == contrast.method:
        return contrast, ""
    found = Contrast(**vars(contrast) | {"control": control})
    if not control:
        return found, "the records name no matched control"
    return found, "" if control in table.methods else f"control {_absent(table, control)}"


def _absent(table: ScoreTable, name: str) -> str:
    marked = [one for one in table.methods if one.startswith(f"{name} (")]
    return f"{name} is ambiguous: {' and '.join(marked)}" if marked else f"{name} was not run"


def _margins(study: Mapping[str, object]) -> tuple[float, float]:
    """Margins of the suite and of a task as shares; a study states them in points."""
    stated = study.get("margins")
    margins = stated if isinstance(stated, Mapping) else {}
    return (
        float(margins.get("suite", 100 * SUITE_MARGIN)) / 100,
        float(margins.get("task", 100 * TASK_MARGIN)) / 100,
    )


def _changes(runs: Sequence[Request]) -> tuple[str, ...]:
    """A warning if the plan changed between two requests: the first results may have caused it."""
    kinds = ("baseline", "contrasts", "margins")
    changed = [key for key in kinds if len({repr(run.study.get(key)) for run in runs}) > 1]
    if not changed:
        return ()
    return (
        f"**Changed after the first run**: {' and '.join(changed)} of the study; what is called "
        "planned here was not declared before all of its records.",
    )


Level = Literal["suite", "group", "task"]


@dataclass(frozen=True, kw_only=True, order=True)
class Scope:
    """What a difference is taken over; `tasks` are columns of the table."""

    level: Level
    name: str
    tasks: tuple[int, ...]


def scopes(table: ScoreTable) -> tuple[Scope, ...]:
    """The suite, its groups of tasks, and each task; insensitive tasks are in no aggregate."""
    columns = range(len(table.tasks))
    counted = [column for column in columns if table.tasks[column].counts]
    groups = sorted({table.tasks[column].group for column in counted} - {""})
    found = [Scope(level="suite", name="suite", tasks=tuple(counted))]
    for group in groups:
        tasks = tuple(column for column in counted if table.tasks[column].group == group)
        found.append(Scope(level="group", name=group, tasks=tasks))
    found += [Scope(level="task", name=table.tasks[one].name, tasks=(one,)) for one in columns]
    return tuple(found)


def weights_of(table: ScoreTable, scope: Scope) -> Float[np.ndarray, " task"]:
    """Points of the metric for a task; an aggregate, even of one task, from chance to perfect."""
    return np.ones(1) if scope.level == "task" else corrected_weights(table, scope.tasks)


class Measurer:
    """Differences of two rows of one table over every scope, each computed once.

    A difference depends on its two rows alone; other methods in the table change no bit of it.
    """

    def __init__(self, results: Results, table: ScoreTable) -> None:
        self._results = results
        self._table = table
        self.scopes = scopes(table)
        self._known: dict[tuple[int, int], Mapping[Scope, Measured]] = {}

    def against(self, method: int, reference: int) -> Mapping[Scope, Measured]:
        """Row `method` minus row `reference`, over every scope."""
        if (method, reference) not in self._known:
            weights = minus(method, reference)
            columns = range(len(self._table.tasks))
            pairs = [self._results.try_pair(self._table, weights, column) for column in columns]
            self._known[method, reference] = {
                scope: measure(
                    [pairs[task] for task in scope.tasks], weights_of(self._table, scope)
                )
                for scope in self.scopes
            }
        return self._known[method, reference]
