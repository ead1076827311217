"""Parts of a plan: a shard of a study for one of several machines, and single cells.

A part consists of whole trainings: all seeds of a method on a task, or of the track `vlm` all tasks
of a model, which share tuning runs and passes.
"""

import re
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, replace

from fusionbench.api.errors import UserError
from fusionbench.records.folder import Place
from fusionbench.study.plan import Cell, Plan

Part = Callable[[Plan], Plan]
"""Selects cells of a plan."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `index` of `count`; the first is 1."""

    index: int
    count: int

    def of(self, plan: Plan) -> Plan:
        """The cells of this shard, whatever is finished.

        The shards of a plan have no cell in common and hold all of them together. Raises UserError
        for a shard beyond the number of trainings.
        """
        known = trainings(plan)
        mine = known[self.index - 1 :: self.count]
        if not mine:
            raise UserError(
                f"part {self.index} of {self.count} is empty: the study has {len(known)} trainings",
                f"divide it into {len(known)} parts at most" if known else "",
            )
        return only(plan, {cell.spec.id for cells in mine for cell in cells})


def parse_shard(text: str) -> Shard:
    """The shard `i/n`. Raises UserError for anything else and for i outside of 1..n."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if found is None:
        raise UserError(f"--shard must be I/N, got {text!r}", "for example --shard 2/3")
    index, count = int(found[1]), int(found[2])
    if not 1 <= index <= count:
        raise UserError(
            f"--shard {text}: there is no part {index} of {count}", f"1/{count} to {count}/{count}"
        )
    return Shard(index=index, count=count)


def only(plan: Plan, ids: Collection[str]) -> Plan:
    """The plan with those of its cells alone whose id is given."""
    return replace(
        plan,
        cells=tuple(cell for cell in plan.cells if cell.spec.id in ids),
        pending=tuple(cell for cell in plan.pending if cell.spec.id in ids),
    )


def one_cell(plan: Plan, name: str) -> Plan:
    """The plan with the cell of this id alone. Raises UserError for an id that it does not have."""
    if not any(cell.spec.id == name for cell in plan.cells):
        raise UserError(
            f"no cell {name!r} in this study",
            "its data, its weights, its methods or the version of this program differ from then",
        )
    return only(plan, {name})


def trainings(plan: Plan) -> list[tuple[Cell, ...]]:
    """All cells of a plan, training by training; the order depends on the study alone.

    The expensive methods come first, so that parts that take turns get equally many of them.
    """
    found: dict[Hashable, list[Cell]] = {}
    for cell in sorted(plan.cells, key=_rank):
        found.setdefault(_training(cell), []).append(cell)
    return [tuple(cells) for cells in found.values()]


def _rank(cell: Cell) -> tuple[bool, bool, str, str, int]:
    card = cell.chosen.card
    return not card.tries, not card.in_encoder, cell.chosen.label, cell.spec.task, cell.spec.seed


def _training(cell: Cell) -> Hashable:
    return cell.chosen.label, cell.spec.seed if cell.spec.training else cell.spec.task


def places(cells: Iterable[Cell]) -> list[Place]:
    """Method, task and seed of each cell."""
    return [(cell.chosen.label, cell.spec.task, cell.spec.seed) for cell in cells]
