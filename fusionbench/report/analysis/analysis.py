"""Everything that a report says about one condition, computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from fusionbench.records.history import Run
from fusionbench.records.pairs import Results
from fusionbench.records.parallel import in_order
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis.cells import cell_interval, outliers, suite_interval
from fusionbench.report.analysis.columns import Column, column
from fusionbench.report.analysis.measure import Measurer, Scope
from fusionbench.report.analysis.plan import Plan, make_plan
from fusionbench.report.analysis.rows import ContrastRow, contrast_rows
from fusionbench.report.summary import Summary
from fusionbench.report.tables import names
from fusionbench.stats.estimate import FEWEST_REPLICATES

_WORTH_A_PROCESS = 10_000
"""Cells; fewer are analysed in a second or two."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One condition: its suite tasks, what was planned, and the answers."""

    table: ScoreTable
    labels: tuple[str, ...]
    """Methods as a reader should see them: `mema-no_feedback (= penultimate)`."""
    plan: Plan
    scopes: tuple[Scope, ...]
    rows: tuple[ContrastRow, ...]
    cells: Mapping[tuple[int, int], Summary]
    """By (method, task)."""
    suite: Mapping[tuple[int, Scope], Summary]
    """Chance-corrected means over the suite and its groups."""
    columns: Mapping[Scope, Column]
    outlying: Mapping[tuple[int, int], tuple[int, ...]]
    """Seeds that stand out, by (method, task)."""

    @cached_property
    def uncommitted(self) -> frozenset[int]:
        """Methods with records from a dirty tree."""
        cells = self.table.cells.items()
        return frozenset(
            m for (m, _, _), one in cells if one.provenance.get("code", {}).get("dirty")
        )

    @property
    def aggregates(self) -> tuple[Scope, ...]:
        """The suite and its groups."""
        return tuple(scope for scope in self.scopes if scope.level != "task")

    @property
    def testable(self) -> bool:
        """Whether any comparison has enough runs for a test."""
        return any(row.answer.p is not None for row in self.rows)

    def of(self, kind: str) -> list[ContrastRow]:
        """The rows of one kind, in order."""
        return [row for row in self.rows if row.kind == kind]

    def against_baseline(self) -> dict[tuple[str, Scope], ContrastRow]:
        """The row of each method and scope against the plan's baseline."""
        return {
            (row.contrast.method, row.scope): row
            for row in self.rows
            if row.contrast.baseline == self.plan.baseline
        }


def analyse_all(
    results: Results,
    tables: Sequence[ScoreTable],
    runs: Sequence[Run],
    baseline: str | None = None,
) -> tuple[Analysis, ...]:
    """Analyse conditions, each in a process of its own where there is much to do."""
    if sum(len(table.cells) for table in tables) < _WORTH_A_PROCESS:
        return tuple(analyse(results, table, runs, baseline) for table in tables)
    # Here, since whoever looks at a record makes a copy of its memory.
    results.number_images()
    jobs = [partial(_findings, results, table, runs, baseline) for table in tables]
    found = zip(tables, in_order(jobs), strict=True)
    return tuple(Analysis(table=table, **findings) for table, findings in found)


def _findings(
    results: Results, table: ScoreTable, runs: Sequence[Run], baseline: str | None
) -> dict[str, Any]:
    """The fields of an analysis but the table: its records are where this process came from."""
    fields = vars(analyse(results, table, runs, baseline))
    return {name: value for name, value in fields.items() if name != "table"}


def analyse(
    results: Results, table: ScoreTable, runs: Sequence[Run], baseline: str | None = None
) -> Analysis:
    """Analyse the suite tasks of one condition.

    Raises UserError for a baseline that was not run, ValueError for a score that is no number.
    """
    plan = make_plan(table, runs, baseline)
    measurer = Measurer(results, table)
    aggregates = [scope for scope in measurer.scopes if scope.level != "task"]
    methods, tasks = range(len(table.methods)), range(len(table.tasks))
    enough = len(table.seeds) >= FEWEST_REPLICATES
    return Analysis(
        table=table,
        labels=tuple(names(table)),
        plan=plan,
        scopes=measurer.scopes,
        rows=contrast_rows(measurer, table, plan),
        cells={(m, t): cell_interval(results, table, m, t) for m in methods for t in tasks},
        suite={(m, s): suite_interval(results, table, m, s) for m in methods for s in aggregates},
        columns={
            scope: column(results, table, scope, plan.baseline) if enough else Column()
            for scope in measurer.scopes
        },
        outlying={(m, t): seeds for m, t, seeds in outliers(table)},
    )
