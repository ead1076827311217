"""Methods that hand another number of tokens to the reader than the baseline does.

Fewer tokens are easier to read where places matter, so such a method is marked and named with the
controls that hand over as many. The counts are those of the records; a method whose records have
none (they were written before counts were stored) gets no mark.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fusionbench.records.scores import ScoreTable
from fusionbench.report.contrasts import BASELINE

MARK = "§"
"""Follows the name of a method with another number of tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens of an image behind the projector, by method (row of a table)."""

    baseline: str
    """The method that the others are compared with; empty if its count is not recorded."""
    usual: int
    """Its tokens; 0 if they are not recorded."""
    by_method: Mapping[int, int]
    """Methods without a recorded count, and methods whose count varies, are left out."""

    @property
    def changed(self) -> Mapping[int, int]:
        """The methods with another number of tokens than the baseline."""
        return {row: count for row, count in self.by_method.items() if self.usual not in (0, count)}


def token_counts(table: ScoreTable, baseline: str) -> TokenCounts:
    """The counts of a table's records.

    Compared with `penultimate` where the table has its count, else with the study's baseline.
    """
    found = {row: count for row in range(len(table.methods)) if (count := _count(table, row))}
    by_name = {table.methods[row]: count for row, count in found.items()}
    reference = next((name for name in (BASELINE, baseline) if name in by_name), "")
    return TokenCounts(baseline=reference, usual=by_name.get(reference, 0), by_method=found)


def token_lines(table: ScoreTable, counts: TokenCounts) -> Iterator[str]:
    """The meaning of the mark, and a line for each number of tokens with its controls."""
    if not counts.changed:
        return
    yield (
        f"{MARK}: hands another number of tokens to the reader than `{counts.baseline}` "
        f"({counts.usual}). Fewer tokens are easier to read where places matter: compare with a "
        "control of as many tokens."
    )
    controls = {record.control for record in table.cells.values()}
    for number in sorted(set(counts.changed.values())):
        rows = [row for row, count in counts.changed.items() if count == number]
        matched = [table.methods[row] for row in rows if table.methods[row] in controls]
        others = [table.methods[row] for row in rows if table.methods[row] not in controls]
        yield (
            f"- {number} tokens: {_listed(others) or 'no method'}; controls with as many: "
            f"{_listed(matched) or 'none here'}"
        )


def _count(table: ScoreTable, method: int) -> int:
    """The tokens of all runs of a method; 0 where a run has no count or another one."""
    found = {record.tokens for record in table.row(method) if record.status == "done"}
    return found.pop() if len(found) == 1 else 0


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
