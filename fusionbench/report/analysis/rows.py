"""One comparison with everything a report says about it, and the families it is judged in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis.families import (
    ALPHA,
    Answer,
    FlipAnswers,
    Question,
    exploratory_answers,
    flip_answers,
    planned_answers,
)
from fusionbench.report.analysis.measure import Measured, Measurer, Scope
from fusionbench.report.analysis.plan import Plan, resolved
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.suite import over_families
from fusionbench.stats.verdicts import both_differ, holm
from fusionbench.study.contrasts import Contrast

Kind = Literal["planned", "followup", "exploratory"]


@dataclass(frozen=True, kw_only=True)
class NewTasks:
    """The claim about new tasks like these: t over the means of task families."""

    estimate: Estimate | None = None
    p_adjusted: float | None = None
    """Holm over the planned contrasts; baseline and control must both be beaten."""
    reason: str = ""
    """Why there is no such claim."""


@dataclass(frozen=True, kw_only=True)
class ContrastRow:
    """One method against one baseline over one scope."""

    kind: Kind
    scope: Scope
    contrast: Contrast
    question: Question
    answer: Answer = Answer()
    margin: float
    family: int = 1
    """Questions in the family it was judged in."""
    flip_p: float | None = None
    """On this test set, adjusted for the whole family."""
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
        """The level of an interval that holds for the whole family at once (Bonferroni)."""
        return ALPHA / self.family


def contrast_rows(measurer: Measurer, table: ScoreTable, plan: Plan) -> tuple[ContrastRow, ...]:
    """Planned contrasts, their follow-ups task by task, and everything else."""
    planned = _judged_planned(list(_planned(measurer, table, plan)), table)
    followups = _judged(list(_followups(measurer, table, plan)))
    known = {_key(row) for row in (*planned, *followups)}
    others = [row for row in _others(measurer, table, plan) if _key(row) not in known]
    answers = exploratory_answers([row.question for row in others])
    found = (
        replace(row, answer=one, family=len(others))
        for row, one in zip(others, answers, strict=True)
    )
    return (*planned, *followups, *found)


def _key(row: ContrastRow) -> tuple[Scope, str, str]:
    return row.scope, row.contrast.method, row.contrast.baseline


def _planned(measurer: Measurer, table: ScoreTable, plan: Plan) -> Iterator[ContrastRow]:
    for stated in plan.contrasts:
        contrast, blocked = resolved(table, stated)
        named = [scope for scope in measurer.scopes if scope.name == contrast.over]
        scope = next((one for one in named if one.level != "task"), measurer.scopes[0])
        question = _question(measurer, table, contrast, scope, blocked)
        yield ContrastRow(
            kind="planned", scope=scope, contrast=contrast, question=question,
            margin=plan.suite_margin,
        )  # fmt: skip


def _followups(measurer: Measurer, table: ScoreTable, plan: Plan) -> Iterator[ContrastRow]:
    for row in _planned(measurer, table, plan):
        for scope in measurer.scopes:
            if scope.level == "task" and scope.tasks[0] in row.scope.tasks:
                question = _question(measurer, table, row.contrast, scope, row.question.blocked)
                yield replace(
                    row, kind="followup", scope=scope, question=question, margin=plan.task_margin
                )


def _others(measurer: Measurer, table: ScoreTable, plan: Plan) -> Iterator[ContrastRow]:
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
                question=Question(references=(measured,)),
                margin=plan.task_margin if scope.level == "task" else plan.suite_margin,
            )


def _question(
    measurer: Measurer, table: ScoreTable, contrast: Contrast, scope: Scope, blocked: str
) -> Question:
    names = [contrast.baseline, *([contrast.control] if contrast.control else [])]
    if contrast.method not in table.methods or contrast.baseline not in table.methods:
        return Question(references=(Measured(gap=blocked),), blocked=blocked)
    method = table.methods.index(contrast.method)
    references = tuple(
        measurer.against(method, table.methods.index(name))[scope]
        for name in names
        if name in table.methods
    )
    return Question(references=references, blocked=blocked)


def _judged(rows: Sequence[ContrastRow]) -> list[ContrastRow]:
    answers = planned_answers([row.question for row in rows], [row.margin for row in rows])
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
    """The claim of every planned contrast; one that cannot be made stays in Holm with p = 1."""
    p, found = np.ones(len(rows)), [NewTasks() for _ in rows]
    for index, row in enumerate(rows):
        families = [table.tasks[task].family for task in row.scope.tasks]
        if row.question.silent or not all(families):
            reason = row.question.silent or "the records name no task families"
            found[index] = NewTasks(reason=reason)
            continue
        try:
            estimates = [_over(one, families) for one in row.question.references]
        except ValueError as error:
            found[index] = NewTasks(reason=str(error))
            continue
        tests = np.array([float(one.p_value()) for one in estimates])
        p[index] = float(both_differ(tests, np.array([float(one.value) for one in estimates])))
        found[index] = NewTasks(estimate=estimates[0])
    adjusted = holm(p)
    return [
        replace(one, p_adjusted=float(value)) if one.estimate is not None else one
        for one, value in zip(found, adjusted, strict=True)
    ]


def _over(measured: Measured, families: Sequence[str]) -> Estimate:
    if measured.by_task is None:
        raise ValueError("nothing was measured here")
    return over_families(measured.by_task, families)
