"""One method minus another over the suite, a group of tasks or one task: all that tests rest on.

A measurement depends on its two methods alone; which others were run changes no bit of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import unknown
from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Run
from fusionbench.records.pairs import Gap, Pair, Results, combined, common, scaled
from fusionbench.records.scores import ScoreTable
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.groups import discordant_groups
from fusionbench.stats.suite import seed_sums, suite_weights, sum_over_tasks
from fusionbench.stats.testset import t_over_seeds
from fusionbench.stats.verdicts import SUITE_MARGIN, TASK_MARGIN
from fusionbench.study.contrasts import MOST_PLANNED, SUITE, Contrast, read_contrasts

# What was planned: the contrasts a study declares, or the ones that stand in for them.
#
# A study that names none gets one contrast per family of methods, against its baseline and the
# family's matched control, in the order of the request and at most twelve: a rule that looks at
# names only, never at scores.


BASELINE = "penultimate"
_NO_CONTROL = "none"
_REFERENCE = "none: it is a "
"""How a card says that its method is a control or a baseline itself."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The comparisons of one condition and what they are judged by."""

    baseline: str
    contrasts: tuple[Contrast, ...] = ()
    """`control` is a name of the table, or empty where none exists."""
    suite_margin: float = SUITE_MARGIN
    task_margin: float = TASK_MARGIN
    notes: tuple[str, ...] = ()


def make_plan(table: ScoreTable, runs: Sequence[Run], baseline: str | None = None) -> Plan:
    """The plan of the last request. Raises UserError for a baseline that was never run.

    With another baseline than the study's nothing is planned: it was chosen after the run.
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
    return Plan(
        baseline=baseline or declared,
        contrasts=contrasts,
        suite_margin=suite_margin,
        task_margin=task_margin,
        notes=notes,
    )


def control_of(table: ScoreTable, method: int) -> str:
    """What the records say of a method's matched control; empty if they say nothing."""
    return max((record.control for record in table.row(method)), default="")


def _contrasts(
    table: ScoreTable, runs: Sequence[Run], baseline: str
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
    return f"{name} stands for {' and '.join(marked)}" if marked else f"{name} was not run"


def _margins(study: Mapping[str, object]) -> tuple[float, float]:
    """Margins of the suite and of a task as shares; a study states them in points."""
    stated = study.get("margins")
    margins = stated if isinstance(stated, Mapping) else {}
    return (
        float(margins.get("suite", 100 * SUITE_MARGIN)) / 100,
        float(margins.get("task", 100 * TASK_MARGIN)) / 100,
    )


def _changes(runs: Sequence[Run]) -> tuple[str, ...]:
    """A plan that changed between two requests may have been changed by what the first showed."""
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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A difference with its two kinds of noise, or the reason why there is none."""

    gap: str = ""
    """Why nothing could be measured; then all the rest is empty."""
    estimate: Estimate | None = None
    """New runs and new images (crossed t): what verdicts rest on."""
    runs: Estimate | None = None
    """New runs on these very images (t over seeds)."""
    by_seed: Float[np.ndarray, " seed"] | None = None
    by_task: Float[np.ndarray, " task"] | None = None
    """Mean difference of each task, from chance (0) to perfect (1)."""
    seeds: tuple[int, ...] = ()
    examples: int = 0
    discordant: int = 0
    """Images on which the two differ in some run; the fewest of any task."""

    @property
    def untestable(self) -> str:
        """Why there is no p-value; empty where there is one."""
        if self.gap:
            return self.gap
        if len(self.seeds) < FEWEST_REPLICATES:
            return f"{len(self.seeds)} runs: no test below {FEWEST_REPLICATES}"
        return ""


def scopes(table: ScoreTable) -> tuple[Scope, ...]:
    """The suite, its groups of tasks, and each task."""
    columns = range(len(table.tasks))
    groups = sorted({task.group for task in table.tasks if task.group})
    found = [Scope(level="suite", name="suite", tasks=tuple(columns))]
    for group in groups:
        tasks = tuple(index for index in columns if table.tasks[index].group == group)
        found.append(Scope(level="group", name=group, tasks=tasks))
    found += [Scope(level="task", name=table.tasks[one].name, tasks=(one,)) for one in columns]
    return tuple(found)


class Measurer:
    """Measures pairs of methods of one table, each only once."""

    def __init__(self, results: Results, table: ScoreTable) -> None:
        self._results = results
        self._table = table
        self.scopes = scopes(table)
        self._known: dict[tuple[int, int], Mapping[Scope, Measured]] = {}

    def against(self, method: int, reference: int) -> Mapping[Scope, Measured]:
        """Row `method` minus row `reference`, over every scope."""
        if (method, reference) not in self._known:
            pairs = [self._pair(method, reference, task) for task in range(len(self._table.tasks))]
            self._known[method, reference] = {
                scope: self._measured(scope, [pairs[task] for task in scope.tasks])
                for scope in self.scopes
            }
        return self._known[method, reference]

    def _pair(self, method: int, reference: int, task: int) -> Pair | Gap:
        try:
            return self._results.pair(self._table, method, reference, task)
        except Gap as gap:
            return gap

    def _measured(self, scope: Scope, pairs: Sequence[Pair | Gap]) -> Measured:
        here = [pair for pair in pairs if isinstance(pair, Pair)]
        gaps = [pair for pair in pairs if isinstance(pair, Gap)]
        if gaps and len(pairs) > 1:
            return Measured(gap=f"{len(here)} of {len(pairs)} tasks: {gaps[0]}")
        if gaps:
            return Measured(gap=str(gaps[0]))
        try:
            shared = common(here)
            weights = weights_of(self._table, scope)
            estimate = _estimate(scope, shared, weights)
        except Gap as gap:
            return Measured(gap=str(gap))
        return _measured(shared, weights, estimate)


def weights_of(table: ScoreTable, scope: Scope) -> Float[np.ndarray, " task"]:
    """A task counts in its own points; an aggregate, be it of one task, from chance to perfect."""
    if scope.level == "task":
        return np.ones(1)
    return suite_weights(np.array([table.tasks[task].chance for task in scope.tasks]))


def _estimate(scope: Scope, pairs: Sequence[Pair], weights: Float[np.ndarray, " task"]) -> Estimate:
    if scope.level != "task" and len(pairs) == 1:
        return sum_over_tasks(scaled(pairs, weights))
    return combined(pairs, weights)


def _measured(
    pairs: Sequence[Pair], weights: Float[np.ndarray, " task"], estimate: Estimate
) -> Measured:
    by_seed = seed_sums(scaled(pairs, weights))
    chance = np.array([pair.task.chance for pair in pairs])
    means = np.array([pair.differences.mean() for pair in pairs])
    counts = [int(discordant_groups(pair.differences, pair.groups)) for pair in pairs]
    return Measured(
        estimate=estimate,
        runs=t_over_seeds(by_seed),
        by_seed=by_seed,
        by_task=means / (1 - chance),
        seeds=pairs[0].seeds,
        examples=sum(pair.differences.shape[-1] for pair in pairs),
        discordant=min(counts),
    )
