"""All contrasts of a folder looked at ahead: over the suite, over its groups, over each task.

A contrast of a study has two references, the baseline and the method's matched control, and
"better" needs both: what counts is the one that is harder to see.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusionbench.api.errors import UserError, unknown
from fusionbench.records.pairs import Gap, Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.contrasts import make_plan, resolved
from fusionbench.report.power.outlook import Goal, Outlook, outlook
from fusionbench.report.tables import aggregates
from fusionbench.stats.verdicts import MOST_PLANNED
from fusionbench.study.contrasts import Contrast


@dataclass(frozen=True, kw_only=True)
class PowerOptions:
    """What a person asked to plan for."""

    effect: float = 1.0
    """Points."""
    pilot: bool = False
    baseline: str = ""
    """Empty: the study's."""
    methods: tuple[str, ...] = ()
    """Empty: the study's contrasts."""
    contrasts: int = 0
    """How many share the 5 %; 0: as many as are looked at."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What one table of results says about studies like it."""

    title: str
    goal: Goal
    outlooks: tuple[Outlook, ...]
    """One for each method, reference and set of tasks."""
    same: tuple[str, ...]
    """Methods that are the baseline's function here."""
    gaps: tuple[str, ...]
    """Why a contrast could not be looked at."""

    @property
    def hardest(self) -> tuple[Outlook, ...]:
        """One for each method and set of tasks: the worse of its references in every number."""
        grouped: dict[tuple[str, str], list[Outlook]] = {}
        for one in self.outlooks:
            grouped.setdefault((one.over, one.method), []).append(one)
        return tuple(_worst(found) for found in grouped.values())


def planned(results: Results, wanted: PowerOptions) -> list[Planned]:
    """One plan for each table with something to compare.

    Raises UserError for a name that the results do not hold, and if there is nothing to compare.
    """
    known = sorted({name for table in results.tables for name in table.methods})
    for name in (wanted.baseline, *wanted.methods):
        if name and name not in known:
            raise unknown("method", name, known, f"these results hold: {', '.join(known)}")
    found = [_table(results, table, wanted) for table in results.tables]
    plans = [plan for plan in found if plan.outlooks or plan.same or plan.gaps]
    if not plans:
        raise UserError("nothing to compare with the baseline", "run another method, too")
    return plans


def _table(results: Results, table: ScoreTable, wanted: PowerOptions) -> Planned:
    contrasts = _contrasts(results, table, wanted)
    goal = Goal(
        effect=wanted.effect,
        contrasts=wanted.contrasts or min(max(len(contrasts), 1), MOST_PLANNED),
        pilot=wanted.pilot,
    )
    outlooks: list[Outlook] = []
    gaps: list[str] = []
    for method, reference in _pairs(table, contrasts):
        rows = table.methods.index(method), table.methods.index(reference)
        for over, tasks in _overs(table):
            try:
                outlooks.append(outlook(results, table, rows, tasks, over=over, goal=goal))
            except Gap as gap:
                gaps.append(f"{method} against {reference}, {over}: {gap}")
    same = [one.method for one in outlooks if one.identical]
    everywhere = {name for name in same if same.count(name) == len(_overs(table))}
    return Planned(
        title=table.condition.title,
        goal=goal,
        outlooks=tuple(one for one in outlooks if not one.identical),
        same=tuple(sorted(everywhere)),
        gaps=tuple(dict.fromkeys(gaps)),
    )


def _contrasts(results: Results, table: ScoreTable, wanted: PowerOptions) -> list[Contrast]:
    """The study's contrasts; where methods or a baseline were named, those against it."""
    runs = results.store.history.runs()
    plan = make_plan(table, runs)
    if not (wanted.baseline or wanted.methods):
        return [resolved(table, contrast)[0] for contrast in plan.contrasts]
    baseline = wanted.baseline or plan.baseline
    methods = wanted.methods or table.methods
    return [Contrast(method=name, baseline=baseline) for name in methods if name != baseline]


def _pairs(table: ScoreTable, contrasts: Sequence[Contrast]) -> Iterator[tuple[str, str]]:
    """Method and reference, of those that this table has."""
    seen = set()
    for one in contrasts:
        for reference in (one.baseline, one.control):
            pair = one.method, reference
            if pair not in seen and {*pair} <= set(table.methods):
                seen.add(pair)
                yield pair


def _overs(table: ScoreTable) -> list[tuple[str, list[int]]]:
    """The suite, its groups and every task, each with its columns."""
    return [*_sums(table), *((task.name, [t]) for t, task in enumerate(table.tasks))]


def _sums(table: ScoreTable) -> Iterator[tuple[str, list[int]]]:
    for name, keep in aggregates(table):
        columns = [int(column) for column in np.flatnonzero(keep)]
        if len(columns) > 1:
            yield name, columns


def _worst(found: Sequence[Outlook]) -> Outlook:
    counts = [one.needed for one in found]
    return replace(
        found[0],
        reference=" and ".join(one.reference for one in found),
        seeds=min(one.seeds for one in found),
        mde=max(one.mde for one in found),
        mde_at=tuple(max(mdes) for mdes in zip(*(one.mde_at for one in found), strict=True)),
        floor=max(one.floor for one in found),
        needed=None if None in counts else max(count for count in counts if count is not None),
    )
