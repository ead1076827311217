"""One comparison with everything a report says about it, and the families it is judged in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fusionbench.records.scores import ScoreTable
from fusionbench.report.contrasts import Measured, Measurer, Plan, Scope, resolved
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.suite import over_families
from fusionbench.stats.testset import step_down_max_t
from fusionbench.stats.verdicts import benjamini_hochberg, both_differ, decide, holm
from fusionbench.study.contrasts import Contrast

# Questions that are asked together, and the answers after correction for their number.
#
# A question that cannot be answered stays in its family with p = 1: a cell that failed makes no
# other p-value smaller.


ALPHA = 0.05
HIGHER, LOWER, OPEN = "higher", "lower", "open"
"""What an exploratory comparison may say; verdicts are for planned ones."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A method against all its references at once: the baseline, then the control if any."""

    references: tuple[Measured, ...]
    blocked: str = ""
    """Why it cannot be decided although there are numbers: its control was not run."""

    @property
    def silent(self) -> str:
        """Why there is no p-value; empty where there is one."""
        reasons = [self.blocked, *(one.untestable for one in self.references)]
        return next((reason for reason in reasons if reason), "")

    @property
    def estimates(self) -> list[Estimate]:
        """What was measured against each reference."""
        return [one.estimate for one in self.references if one.estimate is not None]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The decision on one question; `None` where nothing may be said."""

    p: float | None = None
    p_adjusted: float | None = None
    p_equivalent: float | None = None
    p_equivalent_adjusted: float | None = None
    verdict: str = ""
    mde: float | None = None
    """Minimum detectable effect at the first step of the family's correction."""
    mde_alone: float | None = None


def planned_answers(questions: Sequence[Question], margin: Sequence[float]) -> list[Answer]:
    """Holm over tests of difference and, apart, over tests of equivalence; one margin each."""
    count = len(questions)
    p, same, values = np.ones(count), np.ones(count), np.zeros(count)
    tested = [index for index, one in enumerate(questions) if not one.silent]
    for index in tested:
        estimates = questions[index].estimates
        p[index] = _p_of_all(estimates)
        same[index] = max(float(one.p_equivalent(margin[index])) for one in estimates)
        values[index] = estimates[0].value
    adjusted, same_adjusted = holm(p), holm(same)
    verdicts = decide(values, adjusted, same_adjusted, alpha=ALPHA)
    answers = [Answer() for _ in questions]
    for index in tested:
        estimates = questions[index].estimates
        answers[index] = Answer(
            p=float(p[index]),
            p_adjusted=float(adjusted[index]),
            p_equivalent=float(same[index]),
            p_equivalent_adjusted=float(same_adjusted[index]),
            verdict=str(verdicts[index]),
            mde=max(float(one.mde(ALPHA / count)) for one in estimates),
            mde_alone=max(float(one.mde(ALPHA)) for one in estimates),
        )
    return answers


def exploratory_answers(questions: Sequence[Question]) -> list[Answer]:
    """Benjamini-Hochberg over everything that nobody planned; a hint, never a verdict."""
    tested = [index for index, one in enumerate(questions) if not one.silent]
    p = np.array([_p_of_all(questions[index].estimates) for index in tested])
    answers = [Answer() for _ in questions]
    for index, raw, adjusted in zip(tested, p, benjamini_hochberg(p), strict=True):
        estimate = questions[index].estimates[0]
        side = HIGHER if estimate.value > 0 else LOWER
        answers[index] = Answer(
            p=float(raw),
            p_adjusted=float(adjusted),
            verdict=side if adjusted < ALPHA else OPEN,
            mde=float(estimate.mde(ALPHA)),
            mde_alone=float(estimate.mde(ALPHA)),
        )
    return answers


@dataclass(frozen=True, kw_only=True)
class FlipAnswers:
    """p on this test set: joint sign flips over all planned contrasts and their references."""

    p: tuple[float | None, ...] = ()
    smallest_p: float | None = None
    """No effect, however large, gets below it with this many seeds."""
    seeds: int = 0


def flip_answers(questions: Sequence[Question]) -> FlipAnswers:
    """Step-down max-T over every (contrast, reference); a contrast needs all of its references.

    All flips are joint, so only seeds that every contrast has can enter.
    """
    tested = [index for index, one in enumerate(questions) if not one.silent]
    none = FlipAnswers(p=tuple(None for _ in questions))
    if not tested:
        return none
    shared = set.intersection(*(set(m.seeds) for i in tested for m in questions[i].references))
    if len(shared) < FEWEST_REPLICATES:
        return none
    rows = [_on(m, shared) for i in tested for m in questions[i].references]
    flips = step_down_max_t(np.stack(rows))
    found: list[float | None] = [None] * len(questions)
    start = 0
    for index in tested:
        stop = start + len(questions[index].references)
        means = np.array([row.mean() for row in rows[start:stop]])
        found[index] = float(both_differ(flips.p_value[start:stop], means))
        start = stop
    return FlipAnswers(p=tuple(found), smallest_p=flips.smallest_p, seeds=len(shared))


def _on(measured: Measured, seeds: set[int]) -> np.ndarray:
    """The seed differences of some seeds."""
    if measured.by_seed is None:
        raise ValueError("nothing was measured here")
    return measured.by_seed[[seed in seeds for seed in measured.seeds]]


def _p_of_all(estimates: Sequence[Estimate]) -> float:
    p = np.array([float(one.p_value()) for one in estimates])
    return float(both_differ(p, np.array([float(one.value) for one in estimates])))


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
