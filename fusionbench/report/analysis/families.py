"""Questions that are asked together, and the answers after correction for their number.

A question that cannot be answered stays in its family with p = 1: a cell that failed makes no
other p-value smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusionbench.report.analysis.measure import Measured
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.testset import step_down_max_t
from fusionbench.stats.verdicts import benjamini_hochberg, both_differ, decide, holm

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
