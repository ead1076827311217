"""The input of all figures: the scores of one condition and everything found for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fusionbench.records.cost import CostRecord
from fusionbench.records.pairs import Results
from fusionbench.records.probes import ProbeMap
from fusionbench.records.scores import ScoreTable
from fusionbench.report.contrast_rows import ContrastRow
from fusionbench.report.tables import names

MOST = 10
"""Methods that one panel shows as named curves."""


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """One condition: its score table and contrasts, cost profiles, and probes of its encoder."""

    table: ScoreTable
    results: Results
    baseline: str = ""
    contrasts: Sequence[ContrastRow] = ()
    planned: Sequence[str] = ()
    """Methods of the planned contrasts."""
    margins: tuple[float, float] = (1.0, 2.0)
    """Equivalence margins in points: over the suite, on a task."""
    profiles: Sequence[CostRecord] = ()
    probes: Sequence[ProbeMap] = ()

    @cached_property
    def labels(self) -> list[str]:
        """Printed names of the methods, in the order of the table."""
        return names(self.table)

    @cached_property
    def in_encoder(self) -> list[bool]:
        """For each method whether the encoder runs in every training step."""
        rows = range(len(self.table.methods))
        return [any(run.in_encoder for run in self.table.row(row)) for row in rows]

    def row(self, method: str) -> int | None:
        """Row of a method in the table, None if it was not run."""
        return self.table.methods.index(method) if method in self.table.methods else None


def representatives(data: FigureData, *, complete: bool = False) -> list[int]:
    """Rows of at most `MOST` methods, one per family, in the order of the table.

    Chosen by name, never by score: the baseline, then methods of planned contrasts, then the
    method that a family declares as its representative, then the first of a family by name.
    `complete` keeps only methods that ran on every task of the table with every seed.
    """
    methods = data.table.methods
    allowed = [row for row in range(len(methods)) if not complete or _complete(data.table, row)]
    chosen: dict[str, int] = {}
    for row in sorted(allowed, key=lambda row: (_priority(data, row), methods[row])):
        first = data.table.row(row)[0]
        chosen.setdefault(first.family or first.spec.method.partition("-")[0], row)
    return sorted(list(chosen.values())[:MOST])


def _priority(data: FigureData, row: int) -> int:
    method = data.table.methods[row]
    if method == data.baseline:
        return 0
    if method in data.planned:
        return 1
    return 2 if data.table.row(row)[0].representative else 3


def _complete(table: ScoreTable, row: int) -> bool:
    """Whether a method finished everywhere; one that reads the answers is never ranked."""
    done = sum(record.status == "done" for record in table.row(row))
    return row not in table.leaky and done == len(table.tasks) * len(table.seeds)
