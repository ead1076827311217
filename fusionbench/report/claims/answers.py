"""Holds, fails or undecided: where the interval lies against what the claim allows.

The K claims of a file that can be tested share one error: each interval has level 1 - 0.05 / K, so
with 95 % probability all of them contain the truth, and no answer below is then wrong. A claim
holds if its whole interval lies within what it allows, fails if the whole interval lies outside,
and is undecided otherwise, with the effect that these results could have found.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

import numpy as np

from fusionbench.api.errors import UserError, unknown
from fusionbench.records.pairs import Difference, Gap, Results, difference
from fusionbench.records.scores import ScoreTable
from fusionbench.registry.catalog import Catalog
from fusionbench.registry.selection import select_methods, split_inline
from fusionbench.report.claims.claim import Claim
from fusionbench.stats.estimate import FEWEST_REPLICATES

# What the names in a claim mean: a row of a table, a set of its columns.
#
# A name that neither this installation nor the folder knows is a slip of the pen (UserError); one
# that is known and was not run is a `Gap`.


SUITE = "suite"
_GLOB = set("*?")


def checked(claim: Claim, catalog: Catalog, tables: Sequence[ScoreTable]) -> Claim:
    """The claim with its methods as the tables spell them. Raises UserError for unknown names."""
    methods = {name for table in tables for name in table.methods}
    tasks = {task.name for table in tables for task in table.tasks} | set(catalog.tasks)
    cards = catalog.tasks.values()
    groups = {SUITE} | {card.group for card in cards if card.in_suite}
    groups |= {task.group for table in tables for task in table.tasks if task.in_suite}
    for name in (*claim.tasks, *claim.more_than_on):
        _check_task(name, tasks, groups - {""}, claim.id)
    return replace(
        claim,
        method=_label(claim.method, catalog, methods, claim.id),
        than=_label(claim.than, catalog, methods, claim.id),
    )


def row_named(table: ScoreTable, method: str) -> int:
    """The method's row. Raises Gap if it has none, or several versions."""
    if method in table.methods:
        return table.methods.index(method)
    versions = [name for name in table.methods if name.startswith(f"{method} (")]
    if versions:
        raise Gap(f"these results hold {' and '.join(versions)}: a claim names one of them")
    raise Gap(f"{method} was not run")


def columns(table: ScoreTable, names: Sequence[str]) -> list[int]:
    """The columns that names, globs, skills and `suite` mean, in the order of the table."""
    return [
        column
        for column, task in enumerate(table.tasks)
        if any(
            task.name == name
            or (task.in_suite and name in (SUITE, task.group))
            or (_GLOB & set(name) and fnmatchcase(task.name, name))
            for name in names
        )
    ]


def _label(text: str, catalog: Catalog, labels: Collection[str], claim: str) -> str:
    if text in labels:
        return text
    name, inline = split_inline(text)
    if name not in catalog.methods:
        error = unknown("method", name, {*catalog.methods, *labels}, _ALL)
        raise UserError(f"claim {claim}: {error.message}", error.hint)
    return select_methods(catalog, [text])[0].label if inline else name


def _check_task(name: str, tasks: Collection[str], groups: Collection[str], claim: str) -> None:
    if name in groups or name in tasks:
        return
    if _GLOB & set(name) and any(fnmatchcase(task, name) for task in tasks):
        return
    hint = f"known: {', '.join(sorted(groups))}; `fusionbench list tasks` shows all tasks"
    error = unknown("task or skill", name, {*tasks, *groups}, hint)
    raise UserError(f"claim {claim}: {error.message}", error.hint)


_ALL = "`fusionbench list methods` shows all"

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
    known = [checked(claim, catalog, results.tables) for claim in claims]
    cases = [case for claim in known for case in _cases(claim, results)]
    family = max(sum(case.testable for case in cases), 1)
    return [_answer(case, ALPHA / family) for case in cases]


def _cases(claim: Claim, results: Results) -> list[_Case]:
    tables = [table for table in results.tables if columns(table, claim.tasks)]
    if not tables:
        gap = f"none of its tasks was run: {', '.join(claim.tasks)}"
        return [_Case(claim=claim, table=None, found=None, gap=gap)]
    return [_case(claim, results, table) for table in tables]


def _case(claim: Claim, results: Results, table: ScoreTable) -> _Case:
    try:
        rows = row_named(table, claim.method), row_named(table, claim.than)
        for row in rows:
            if row in table.leaky:
                raise Gap(f"{table.methods[row]} reads the answers in training")
        beyond = columns(table, claim.more_than_on)
        if claim.more_than_on and not beyond:
            raise Gap(f"none of these tasks was run: {', '.join(claim.more_than_on)}")
        found = difference(results, table, rows, columns(table, claim.tasks), beyond=beyond)
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
