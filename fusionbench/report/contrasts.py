"""The contrasts of one condition, planned and exploratory: questions, groups, answers.

Planned are the contrasts that a study declares. A study without any gets one contrast per family
of methods, against its baseline and the family's matched control, in the order of the request and
at most twelve; names decide, never scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import unknown
from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Request
from fusionbench.records.pairs import Measured, Results, corrected_weights, measure, minus
from fusionbench.records.scores import ScoreTable
from fusionbench.stats import verdicts
from fusionbench.stats.crossed import step_down_max_t
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.suite import over_families
from fusionbench.stats.verdicts import (
    ALPHA,
    SUITE_MARGIN,
    TASK_MARGIN,
    Correction,
    Decision,
    all_differ,
)
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
    """One method of each family: the declared one, else the first of the request; the newest."""
    place = {label: index for index, label in enumerate(order)}
    found: dict[str, list[tuple[bool, int, int, str]]] = {}
    for row, name in enumerate(table.methods):
        first = table.row(row)[0]
        if name == baseline or row in table.leaky or _is_reference(first):
            continue
        family = first.family or first.spec.method
        at = place.get(first.label, len(place))
        rank = (not first.representative, at, -first.spec.method_version, name)
        found.setdefault(family, []).append(rank)
    best = sorted(min(ranks)[1:] for ranks in found.values())
    return [name for *_, name in best]


def _is_reference(record: CellRecord) -> bool:
    return record.control.startswith(_REFERENCE)


def resolved(table: ScoreTable, contrast: Contrast) -> tuple[Contrast, str]:
    """The contrast with its control filled in, and why it cannot be decided (or nothing)."""
    groups = {task.group for task in table.tasks if task.counts}
    if contrast.over != SUITE and contrast.over not in groups:
        return contrast, f"no task of the group {contrast.over} counts"
    for name in (contrast.method, contrast.baseline):
        if name not in table.methods:
            return contrast, absent(table, name)
    row = table.methods.index(contrast.method)
    if row in table.leaky:
        return contrast, f"{contrast.method} reads the answers in training"
    control = contrast.control or control_of(table, row)
    if control.startswith(_NO_CONTROL) or control == contrast.method:
        return contrast, ""
    found = Contrast(**vars(contrast) | {"control": control})
    if not control:
        return found, "the records name no matched control"
    return found, "" if control in table.methods else f"control {absent(table, control)}"


def absent(table: ScoreTable, name: str) -> str:
    """Why the table has no method of this name: it was not run, or in several versions."""
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


OPEN = verdicts.Verdict.OPEN


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method against all its references: the baseline, then the control if any.

    A question that cannot be answered stays in its correction group with p = 1, so a failed cell
    makes no other p-value smaller.
    """

    references: tuple[Measured, ...]
    blocked: str = ""
    """Why it cannot be decided although there are numbers: its control was not run."""
    partial: bool = False
    """Whether a reference has fewer runs than other methods of the table."""

    @property
    def silent(self) -> str:
        """Why there is no p-value; empty where there is one."""
        reasons = [self.blocked, *(one.untestable for one in self.references)]
        return next((reason for reason in reasons if reason), "")

    def judged(self, margin: float | None = None) -> verdicts.Question:
        """The question as the judge takes it."""
        estimates = () if self.silent else tuple(one.estimate for one in self.references)
        return verdicts.Question(
            references=tuple(e for e in estimates if e), margin=margin, partial=self.partial
        )


@dataclass(frozen=True, kw_only=True)
class FlipAnswers:
    """p on this test set: joint sign flips over all planned contrasts and their references."""

    p: tuple[float | None, ...] = ()
    smallest_p: float | None = None
    """The smallest p that this many seeds can give."""
    seeds: int = 0


def flip_answers(questions: Sequence[Comparison]) -> FlipAnswers:
    """Step-down max-T over every (contrast, reference); a contrast needs all of its references.

    All flips are joint, so only seeds that every contrast has can enter.
    """
    tested = [index for index, one in enumerate(questions) if not one.silent]
    found: list[float | None] = [None] * len(questions)
    references = [one for index in tested for one in questions[index].references]
    shared = set.intersection(*(set(one.seeds) for one in references)) if references else set()
    if len(shared) < FEWEST_REPLICATES:
        return FlipAnswers(p=tuple(found))
    differences = np.stack([_on(one, shared) for one in references])
    flips = step_down_max_t(differences)
    counts = [len(questions[index].references) for index in tested]
    starts = np.cumsum([0, *counts[:-1]])
    for index, p in zip(
        tested, all_differ(flips.p_value, differences.mean(axis=1), starts), strict=True
    ):
        found[index] = float(p)
    return FlipAnswers(p=tuple(found), smallest_p=flips.smallest_p, seeds=len(shared))


def _on(measured: Measured, seeds: set[int]) -> np.ndarray:
    """The seed differences of some seeds."""
    if measured.by_seed is None:
        raise ValueError("nothing was measured here")
    return measured.by_seed[[seed in seeds for seed in measured.seeds]]


@dataclass(frozen=True, kw_only=True)
class NewTasks:
    """Inference to new tasks of this kind: t over the means of task families."""

    estimate: Estimate | None = None
    p_adjusted: float | None = None
    """Holm over the planned contrasts; baseline and control must both be beaten."""
    reason: str = ""
    """Why there is no such inference."""


@dataclass(frozen=True, kw_only=True)
class ContrastRow:
    """One method against one baseline over one scope, with its answer."""

    kind: Literal["planned", "followup", "exploratory"]
    scope: Scope
    contrast: Contrast
    question: Comparison
    answer: Decision = Decision()
    margin: float
    family: int = 1
    """Size of its correction group."""
    flip_p: float | None = None
    """On this test set, adjusted for all planned contrasts."""
    flips: FlipAnswers = FlipAnswers()
    new_tasks: NewTasks = NewTasks()

    @property
    def measured(self) -> Measured:
        """Against the baseline."""
        return self.question.references[0]

    @property
    def to_control(self) -> Measured | None:
        """Against the matched control, where there is one."""
        return self.question.references[1] if len(self.question.references) > 1 else None

    @property
    def simultaneous(self) -> float:
        """Level of an interval that is simultaneous over the correction group (Bonferroni)."""
        return ALPHA / self.family


def contrast_rows(
    measurer: Measurer, table: ScoreTable, plan: ContrastPlan
) -> tuple[ContrastRow, ...]:
    """Planned contrasts, their follow-ups task by task, and everything else."""
    planned = _judged_planned(list(_planned(measurer, table, plan)), table)
    followups = _judged(list(_followups(measurer, table, plan)))
    known = {_key(row) for row in (*planned, *followups)}
    others = [row for row in _others(measurer, table, plan) if _key(row) not in known]
    return (*planned, *followups, *_explored(others))


def _key(row: ContrastRow) -> tuple[Scope, str, str]:
    return row.scope, row.contrast.method, row.contrast.baseline


def _planned(measurer: Measurer, table: ScoreTable, plan: ContrastPlan) -> Iterator[ContrastRow]:
    for stated in plan.contrasts:
        contrast, blocked = resolved(table, stated)
        named = [scope for scope in measurer.scopes if scope.name == contrast.over]
        scope = next((one for one in named if one.level != "task"), measurer.scopes[0])
        question = _question(measurer, table, contrast, scope, blocked)
        yield ContrastRow(
            kind="planned", scope=scope, contrast=contrast, question=question,
            margin=plan.suite_margin,
        )  # fmt: skip


def _followups(measurer: Measurer, table: ScoreTable, plan: ContrastPlan) -> Iterator[ContrastRow]:
    for row in _planned(measurer, table, plan):
        for scope in measurer.scopes:
            if scope.level == "task" and scope.tasks[0] in row.scope.tasks:
                question = _question(measurer, table, row.contrast, scope, row.question.blocked)
                yield replace(
                    row, kind="followup", scope=scope, question=question, margin=plan.task_margin
                )


def _others(measurer: Measurer, table: ScoreTable, plan: ContrastPlan) -> Iterator[ContrastRow]:
    if plan.baseline not in table.methods:
        return
    reference = table.methods.index(plan.baseline)
    for row, name in enumerate(table.methods):
        if row == reference:
            continue
        contrast = Contrast(method=name, baseline=plan.baseline)
        for scope, measured in measurer.against(row, reference).items():
            if scope.level != "task" and row in table.leaky:
                continue
            yield ContrastRow(
                kind="exploratory",
                scope=scope,
                contrast=contrast,
                question=Comparison(references=(measured,)),
                margin=plan.task_margin if scope.level == "task" else plan.suite_margin,
            )


def _question(
    measurer: Measurer, table: ScoreTable, contrast: Contrast, scope: Scope, blocked: str
) -> Comparison:
    names = [contrast.baseline, *([contrast.control] if contrast.control else [])]
    if contrast.method not in table.methods or contrast.baseline not in table.methods:
        return Comparison(references=(Measured(gap=blocked),), blocked=blocked)
    method = table.methods.index(contrast.method)
    references = tuple(
        measurer.against(method, table.methods.index(name))[scope]
        for name in names
        if name in table.methods
    )
    partial = any(len(one.seeds) < len(table.seeds) for one in references)
    return Comparison(references=references, blocked=blocked, partial=partial)


def _judged(rows: Sequence[ContrastRow]) -> list[ContrastRow]:
    answers = verdicts.judge([row.question.judged(row.margin) for row in rows], Correction.HOLM)
    return [
        replace(row, answer=answer, family=len(rows))
        for row, answer in zip(rows, answers, strict=True)
    ]


def _explored(rows: Sequence[ContrastRow]) -> list[ContrastRow]:
    """Benjamini-Hochberg; only the direction is decided."""
    questions = [row.question.judged() for row in rows]
    answers = verdicts.judge(questions, Correction.BENJAMINI_HOCHBERG)
    return [
        replace(row, answer=answer, family=len(rows))
        for row, answer in zip(rows, answers, strict=True)
    ]


def _judged_planned(rows: Sequence[ContrastRow], table: ScoreTable) -> list[ContrastRow]:
    flips = flip_answers([row.question for row in rows])
    news = _new_tasks(rows, table)
    return [
        replace(row, flip_p=p, flips=flips, new_tasks=new)
        for row, p, new in zip(_judged(rows), flips.p, news, strict=True)
    ]


def _new_tasks(rows: Sequence[ContrastRow], table: ScoreTable) -> list[NewTasks]:
    """Inference to new tasks for each planned contrast, corrected over all of them (Holm)."""
    questions, reasons = [], []
    for row in rows:
        families = [table.tasks[task].family for task in row.scope.tasks]
        reason = row.question.silent or ("" if all(families) else _NO_FAMILIES)
        try:
            estimates = () if reason else [_over(m, families) for m in row.question.references]
        except ValueError as error:
            estimates, reason = (), str(error)
        partial = row.question.partial
        questions.append(verdicts.Question(references=tuple(estimates), partial=partial))
        reasons.append(reason)
    answers = verdicts.judge(questions, Correction.HOLM)
    return [
        NewTasks(
            estimate=next(iter(question.references), None),
            p_adjusted=answer.p_adjusted,
            reason=reason,
        )
        for question, answer, reason in zip(questions, answers, reasons, strict=True)
    ]


_NO_FAMILIES = "the records name no task families"


def _over(measured: Measured, families: Sequence[str]) -> Estimate:
    if measured.by_task is None:
        raise ValueError("nothing was measured here")
    return over_families(measured.by_task, families)
