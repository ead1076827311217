"""Holds, fails or undecided: where the interval lies against what the claim allows.

The K claims of a file that can be tested share one error: each interval has level 1 - 0.05 / K, so
with 95 % probability all of them contain the truth, and no answer below is then wrong. A claim
holds if its whole interval lies within what it allows, fails if the whole interval lies outside,
and is undecided otherwise, with the effect that these results could have found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from fusionbench.claims import naming
from fusionbench.claims.claim import Claim
from fusionbench.records.pairs import Difference, Gap, Results, difference
from fusionbench.records.scores import ScoreTable
from fusionbench.registry.catalog import Catalog
from fusionbench.stats.estimate import FEWEST_REPLICATES

ALPHA = 0.05


class Verdict(StrEnum):
    """What the results say of a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A claim's verdict in one condition, and why; differences are in points."""

    claim: Claim
    condition: str
    """The table's title; empty where no table has the claim's tasks."""
    verdict: Verdict
    reason: str
    found: Difference | None = None
    low: float = float("nan")
    """Ends of the simultaneous interval."""
    high: float = float("nan")
    mde: float = float("nan")
    """How far beyond the claim's limit the truth must lie to be found with 80 % power."""

    @property
    def value(self) -> float:
        """The estimated difference in points; NaN without one."""
        return 100 * float(self.found.estimate.value) if self.found else float("nan")


@dataclass(frozen=True, kw_only=True)
class _Case:
    claim: Claim
    table: ScoreTable | None
    found: Difference | None
    gap: str

    @property
    def testable(self) -> bool:
        return self.found is not None and self.found.estimate.testable


def answers(claims: Sequence[Claim], results: Results, catalog: Catalog) -> list[Answer]:
    """Every claim in every condition that has its tasks, in the order of the claims.

    Raises UserError for a name that nobody knows.
    """
    known = [naming.checked(claim, catalog, results.tables) for claim in claims]
    cases = [case for claim in known for case in _cases(claim, results)]
    family = max(sum(case.testable for case in cases), 1)
    return [_answer(case, ALPHA / family) for case in cases]


def _cases(claim: Claim, results: Results) -> list[_Case]:
    tables = [table for table in results.tables if naming.columns(table, claim.tasks)]
    if not tables:
        gap = f"none of its tasks was run: {', '.join(claim.tasks)}"
        return [_Case(claim=claim, table=None, found=None, gap=gap)]
    return [_case(claim, results, table) for table in tables]


def _case(claim: Claim, results: Results, table: ScoreTable) -> _Case:
    try:
        rows = naming.row(table, claim.method), naming.row(table, claim.than)
        for row in rows:
            if row in table.leaky:
                raise Gap(f"{table.methods[row]} reads the answers in training")
        beyond = naming.columns(table, claim.more_than_on)
        if claim.more_than_on and not beyond:
            raise Gap(f"none of these tasks was run: {', '.join(claim.more_than_on)}")
        found = difference(results, table, rows, naming.columns(table, claim.tasks), beyond=beyond)
    except Gap as gap:
        return _Case(claim=claim, table=table, found=None, gap=str(gap))
    return _Case(claim=claim, table=table, found=found, gap="")


def _answer(case: _Case, alpha: float) -> Answer:
    title = case.table.condition.title if case.table else ""
    if case.found is None:
        verdict = Verdict.UNDECIDED
        return Answer(claim=case.claim, condition=title, verdict=verdict, reason=case.gap)
    estimate = case.found.estimate
    # Without a test there is no family: the interval shown is then a plain 95 % one.
    level = alpha if estimate.testable else ALPHA
    low, high = (100 * float(end) for end in estimate.interval(level))
    mde = 100 * float(estimate.mde(level))
    if estimate.testable:
        verdict, reason = decide(case.claim, low, high, mde)
    else:
        verdict = Verdict.UNDECIDED
        reason = f"{estimate.replicates} seeds: a test needs at least {FEWEST_REPLICATES}"
    return Answer(
        claim=case.claim,
        condition=title,
        verdict=verdict,
        reason=reason,
        found=case.found,
        low=low,
        high=high,
        mde=mde,
    )


def decide(claim: Claim, low: float, high: float, mde: float) -> tuple[Verdict, str]:
    """The verdict and its reason from a simultaneous interval, in points."""
    if not np.isfinite([low, high]).all():
        return Verdict.UNDECIDED, "no finite interval"
    if claim.low < low and high < claim.high:
        return Verdict.HOLDS, "the whole interval lies within the claim"
    if high < claim.low or claim.high < low:
        return Verdict.FAILS, "the whole interval contradicts the claim"
    return Verdict.UNDECIDED, f"the interval reaches both sides; {mde:.1f} points would be found"
