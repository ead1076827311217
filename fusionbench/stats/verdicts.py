"""The judge: p-values corrected for the number of questions, intervals, MDE and the verdict.

Reports, claims, power plans, ablations and comparisons of folders all call `judge`; the null
simulations in `tests/stats` test the same function. Margins and bounds are declared before the
run and never computed from data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from fusionbench.stats.estimate import Estimate, finite, stack

ALPHA = 0.05
# In the unit of a score in [0, 1]: one point and two points.
SUITE_MARGIN = 0.010
TASK_MARGIN = 0.020


class Verdict(StrEnum):
    """Decisions on a margin, on the direction alone, and on a claimed range."""

    BETTER = "better"
    WORSE = "worse"
    SLIGHTLY_BETTER = "better by less than the margin"
    SLIGHTLY_WORSE = "worse by less than the margin"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    HIGHER = "higher"
    LOWER = "lower"
    OPEN = "open"
    HOLDS = "holds"
    FAILS = "fails"


class Correction(StrEnum):
    """How the p-values of one correction group are adjusted."""

    HOLM = "Holm"
    BENJAMINI_HOCHBERG = "Benjamini-Hochberg"
    BONFERRONI = "Bonferroni"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One comparison: differences from every reference, baseline first, then the matched control.

    `margin` asks for better, worse or equivalent; `claimed` asks whether the difference from the
    first reference lies in an open range; with neither, only the direction is decided.
    """

    references: tuple[Estimate, ...] = ()
    """Scalar estimates; empty where nothing was measured: the question then counts with p = 1."""
    margin: float | None = None
    claimed: tuple[float, float] | None = None
    partial: bool = False
    """Runs are still to come: it counts with p = 1 in the correction of the other questions."""

    @property
    def testable(self) -> bool:
        """Whether every reference has enough replicates for a test."""
        return bool(self.references) and all(one.testable for one in self.references)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision on one question; None where there is no test or nothing was measured.

    `low`, `high`: interval of the difference from the first reference at the corrected level.
    `mde`: minimum detectable effect at that level, `mde_alone` at 5 %; of several references the
    largest.
    """

    p: float | None = None
    p_adjusted: float | None = None
    p_equivalent: float | None = None
    p_equivalent_adjusted: float | None = None
    verdict: str = ""
    """A `Verdict`, or empty."""
    low: float | None = None
    high: float | None = None
    mde: float | None = None
    mde_alone: float | None = None


def judge(
    questions: Sequence[Question],
    correction: Correction,
    *,
    tests: int | None = None,
    alpha: float = ALPHA,
) -> list[Decision]:
    """Answer the questions of one correction group, in their order.

    "Better" needs every reference beaten, "equivalent" needs equivalence to each; tests of
    difference and of equivalence are corrected separately. `tests` is the size of the group where
    it is larger than `questions`. Intervals and MDE are at alpha / tests, uncorrected for
    Benjamini-Hochberg. Untestable questions get an interval and an MDE, but no p-value.
    """
    count = max(tests or 0, len(questions), 1)
    level = alpha if correction is Correction.BENJAMINI_HOCHBERG else alpha / count
    p, same = np.ones(count), np.ones(count)
    tested = [index for index, one in enumerate(questions) if one.testable]
    p[tested], same[tested] = _p_values([questions[index] for index in tested])
    partial = np.zeros(count, dtype=np.bool_)
    partial[[index for index in tested if questions[index].partial]] = True
    p_adjusted, same_adjusted = (_settled(one, partial, correction) for one in (p, same))
    differs, alike = (p_adjusted < alpha).tolist(), (same_adjusted < alpha).tolist()
    answers = [Decision() for _ in questions]
    measured = [index for index, one in enumerate(questions) if one.references]
    bounds = _bounds([questions[index] for index in measured], level, alpha)
    for index, answer in zip(measured, bounds, strict=True):
        answers[index] = answer
    for index in tested:
        question, answer = questions[index], answers[index]
        asks_equivalence = question.margin is not None
        answers[index] = replace(
            answer,
            p=float(p[index]),
            p_adjusted=float(p_adjusted[index]),
            p_equivalent=float(same[index]) if asks_equivalence else None,
            p_equivalent_adjusted=float(same_adjusted[index]) if asks_equivalence else None,
            verdict=str(_verdict(question, answer, differs[index], alike[index])),
        )
    return answers


def judge_groups(
    questions: Sequence[Question], groups: Sequence[str], correction: Correction
) -> list[Decision]:
    """`judge` within each correction group; `groups` names the group of each question."""
    answers = [Decision() for _ in questions]
    for group in dict.fromkeys(groups):
        rows = [index for index, name in enumerate(groups) if name == group]
        judged = judge([questions[row] for row in rows], correction)
        for row, answer in zip(rows, judged, strict=True):
            answers[row] = answer
    return answers


def _flat(questions: Sequence[Question]) -> tuple[Estimate, Int[np.ndarray, " question"]]:
    """All references in one table, and the row at which each question begins."""
    counts = [len(question.references) for question in questions]
    starts = np.cumsum([0, *counts[:-1]])
    return stack([one for question in questions for one in question.references]), starts


def _p_values(
    questions: Sequence[Question],
) -> tuple[Float[np.ndarray, " question"], Float[np.ndarray, " question"]]:
    """Of each question, p of "differs from all references" and of "equivalent to all"."""
    if not questions:
        return np.zeros(0), np.zeros(0)
    table, starts = _flat(questions)
    p = all_differ(table.p_value(), table.value, starts)
    margins = np.repeat(
        [np.inf if one.margin is None else one.margin for one in questions],
        [len(one.references) for one in questions],
    )
    same = np.maximum.reduceat(table.p_equivalent(margins), starts)
    return p, np.where([one.margin is None for one in questions], 1.0, same)


def _bounds(questions: Sequence[Question], level: float, alpha: float) -> Iterator[Decision]:
    """Intervals and minimum detectable effects, without tests."""
    if not questions:
        return
    table, starts = _flat(questions)
    lows, highs = table[starts].interval(level)
    mdes = np.maximum.reduceat(table.mde(level), starts)
    alone = np.maximum.reduceat(table.mde(alpha), starts)
    for low, high, mde, mde_alone in zip(lows, highs, mdes, alone, strict=True):
        yield Decision(low=float(low), high=float(high), mde=float(mde), mde_alone=float(mde_alone))


def _verdict(question: Question, answer: Decision, differs: bool, same: bool) -> Verdict:
    higher = bool(question.references[0].value > 0)
    if question.claimed is not None:
        return _on_claim(question.claimed, answer)
    if question.margin is None:
        return (Verdict.HIGHER if higher else Verdict.LOWER) if differs else Verdict.OPEN
    if differs and higher:
        return Verdict.SLIGHTLY_BETTER if same else Verdict.BETTER
    if differs:
        return Verdict.SLIGHTLY_WORSE if same else Verdict.WORSE
    return Verdict.EQUIVALENT if same else Verdict.UNDECIDED


def _on_claim(claimed: tuple[float, float], answer: Decision) -> Verdict:
    """Holds if the interval lies inside the claimed range, fails if it lies outside."""
    low, high = answer.low, answer.high
    if low is None or high is None:
        return Verdict.UNDECIDED
    if claimed[0] < low and high < claimed[1]:
        return Verdict.HOLDS
    return Verdict.FAILS if high < claimed[0] or claimed[1] < low else Verdict.UNDECIDED


def _settled(
    p: Float[np.ndarray, " test"], partial: Bool[np.ndarray, " test"], correction: Correction
) -> Float[np.ndarray, " test"]:
    """Adjusted p; those of complete questions as if no partial one were ever rejected."""
    complete = _adjusted(np.where(partial, 1.0, p), correction)
    return np.where(partial, _adjusted(p, correction), complete)


def _adjusted(p: Float[np.ndarray, " test"], correction: Correction) -> Float[np.ndarray, " test"]:
    if correction is Correction.HOLM:
        return holm(p)
    if correction is Correction.BENJAMINI_HOCHBERG:
        return benjamini_hochberg(p)
    return np.minimum(p * len(p), 1.0)


def all_differ(
    p_values: Real[np.ndarray, " reference"],
    values: Real[np.ndarray, " reference"],
    starts: Int[np.ndarray, " question"],
) -> Float[np.ndarray, " question"]:
    """One p per question for "differs from every reference, in the same direction".

    `starts` gives the first reference of each question. The largest p of a question: no correction
    is due, for all references must differ (intersection-union, Berger 1982). Better than the
    baseline and worse than the control is neither: p = 1.
    """
    p, signs = _probabilities(p_values), np.sign(finite("values", values))
    agree = np.minimum.reduceat(signs, starts) == np.maximum.reduceat(signs, starts)
    return np.where(agree, np.maximum.reduceat(p, starts), 1.0)


def holm(p_values: Real[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p: any false rejection at all with at most 5 %, however the tests depend.

    Holm 1979, https://www.jstor.org/stable/4615733. ValueError on NaN or outside [0, 1].
    """
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    return _in_given_order(np.maximum.accumulate(stepped), order)


def benjamini_hochberg(p_values: Real[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p (q): of the rejections at q <= 0.05, about 5 % are false. Exploratory only.

    Benjamini and Hochberg 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _in_given_order(np.minimum.accumulate(stepped[::-1])[::-1], order)


def _in_given_order(
    sorted_p: Float[np.ndarray, " test"], order: np.ndarray
) -> Float[np.ndarray, " test"]:
    adjusted = np.empty_like(sorted_p)
    adjusted[order] = np.minimum(sorted_p, 1.0)
    return adjusted


def _probabilities(p_values: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    p = finite("p-values", p_values)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"p-values must lie in [0, 1], got {p.min()} to {p.max()}")
    return p
