"""Which table of one folder stands beside which of the other, and which cells are namesakes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import Condition, ScoreTable


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A table of each folder that can be compared."""

    a: ScoreTable
    b: ScoreTable

    @property
    def title(self) -> str:
        """The condition, or both where they differ."""
        one, two = self.a.condition.title, self.b.condition.title
        return one if one == two else f"{one} | {two}"

    @property
    def methods(self) -> list[str]:
        """Methods that both have."""
        return [name for name in self.a.methods if name in self.b.methods]

    @property
    def tasks(self) -> list[str]:
        """Tasks that both have."""
        theirs = {task.name for task in self.b.tasks}
        return [task.name for task in self.a.tasks if task.name in theirs]

    def namesakes(self) -> Iterator[tuple[CellRecord, CellRecord]]:
        """Finished cells of the same method, task and seed."""
        theirs = {_name(self.b, place): cell for place, cell in self.b.cells.items()}
        for place, cell in sorted(self.a.cells.items()):
            other = theirs.get(_name(self.a, place))
            if other is not None and cell.status == other.status == "done":
                yield cell, other


def matched(
    a: Sequence[ScoreTable], b: Sequence[ScoreTable]
) -> tuple[list[Sides], list[ScoreTable], list[ScoreTable]]:
    """Tables side by side, then those that only one folder has.

    Equal conditions first; then, where a folder has one table left for an encoder and a track, that
    with the other's: their budgets or weights differ, which the comparison then says.
    """
    left, right = list(a), list(b)
    pairs: list[Sides] = []
    for same in (_whole, _loosely):
        for one in list(left):
            here = [two for two in left if same(two.condition, one.condition)]
            there = [two for two in right if same(two.condition, one.condition)]
            if len(here) == len(there) == 1:
                pairs.append(Sides(a=one, b=there[0]))
                left.remove(one)
                right.remove(there[0])
    return pairs, left, right


def _whole(one: Condition, two: Condition) -> bool:
    return one == two


def _loosely(one: Condition, two: Condition) -> bool:
    return (one.track, one.encoder) == (two.track, two.encoder)


def _name(table: ScoreTable, place: tuple[int, int, int]) -> tuple[str, str, int]:
    method, task, seed = place
    return table.methods[method], table.tasks[task].name, table.seeds[seed]
