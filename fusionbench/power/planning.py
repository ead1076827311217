"""All contrasts of a folder looked at ahead: over the suite, over its skills, over each task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fusionbench.errors import UserError, unknown
from fusionbench.paired.results import Gap, Results
from fusionbench.power.outlook import Goal, Outlook, outlook
from fusionbench.report.tables import aggregates
from fusionbench.scores import ScoreTable
from fusionbench.stats import MOST_PLANNED


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What one table of results says about studies like it."""

    title: str
    outlooks: tuple[Outlook, ...]
    same: tuple[str, ...]
    """Contrasts of two methods that are the same function here."""
    gaps: tuple[str, ...]
    """Why a contrast could not be looked at."""


def plan_for(results: Results, *, baseline: str, methods: Sequence[str]) -> list[tuple[str, str]]:
    """The contrasts to look at: those of the study, else every method against the baseline.

    Raises UserError for a baseline or method that the results do not hold.
    """
    known = sorted({name for table in results.tables for name in table.methods})
    for name in (baseline, *methods):
        if name not in known:
            raise unknown("method", name, known, f"these results hold: {', '.join(known)}")
    chosen = [name for name in methods or known if name != baseline]
    if not chosen:
        raise UserError(
            f"nothing to compare: these results hold {baseline} alone", "run another method, too"
        )
    return [(name, baseline) for name in chosen]


def contrast_count(results: Results, pairs: Sequence[tuple[str, str]]) -> int:
    """How many contrasts share the 5 %: those planned in the study, else those looked at."""
    planned = results.planned.study.get("contrasts", ()) if results.planned else ()
    return len(planned) or min(len(pairs), MOST_PLANNED)


def planned(results: Results, pairs: Sequence[tuple[str, str]], goal: Goal) -> list[Planned]:
    """One plan for each table that holds any of the contrasts."""
    found = [_table(results, table, pairs, goal) for table in results.tables]
    return [plan for plan in found if plan.outlooks or plan.same or plan.gaps]


def _table(
    results: Results, table: ScoreTable, pairs: Sequence[tuple[str, str]], goal: Goal
) -> Planned:
    outlooks: list[Outlook] = []
    gaps: list[str] = []
    for method, reference in pairs:
        if method not in table.methods or reference not in table.methods:
            continue
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
        outlooks=tuple(one for one in outlooks if not one.identical),
        same=tuple(sorted(everywhere)),
        gaps=tuple(dict.fromkeys(gaps)),
    )


def _overs(table: ScoreTable) -> list[tuple[str, list[int]]]:
    """The suite, its skills and every task, each with its columns."""
    return [*_sums(table), *((task.name, [t]) for t, task in enumerate(table.tasks))]


def _sums(table: ScoreTable) -> Iterator[tuple[str, list[int]]]:
    for name, keep in aggregates(table):
        columns = [int(column) for column in np.flatnonzero(keep)]
        if len(columns) > 1:
            yield name, columns
