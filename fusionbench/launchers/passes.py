"""Which cells are trained in one pass, and which learning rate they get.

The layout of a pass is fixed by the budget, never by what is missing: seeds come in blocks of
`seeds_per_pass` from 0 on, and the tuning runs of a cell, all learning rates and seeds, are one
pass. To fill a missing cell its whole pass is trained again and only what is missing is written,
so that a run which was stopped ends with the numbers of one which was not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from fusionbench.harness.cell import Tuned
from fusionbench.harness.passes import Member, Outcome
from fusionbench.records.cell import CellRecord, CellSpec
from fusionbench.study.plan import Cell


def seeds_of_pass(seed: int, size: int) -> range:
    """The block of seeds that are trained together with this one."""
    first = seed - seed % size
    return range(first, first + size)


def blocks(cells: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
    """The cells of one job, pass by pass."""

    def first_seed(cell: Cell) -> int:
        return seeds_of_pass(cell.spec.seed, cell.spec.budget.seeds_per_pass).start

    for _, group in groupby(sorted(cells, key=lambda cell: cell.spec.seed), key=first_seed):
        yield tuple(group)


def members(cells: Sequence[Cell], tuned: Tuned) -> list[Member]:
    """The whole pass of these cells; seeds that nobody asked for complete it."""
    spec = cells[0].spec
    wanted = {cell.spec.seed for cell in cells}
    return [
        Member(spec=replace(spec, seed=seed), tuned=tuned, wanted=seed in wanted)
        for seed in seeds_of_pass(spec.seed, spec.budget.seeds_per_pass)
    ]


def tuning_members(grid: Mapping[float, Sequence[CellSpec]]) -> list[Member]:
    """All runs that choose a learning rate."""
    return [
        Member(spec=spec, tuned=Tuned(lr=lr, scores={}))
        for lr, runs in grid.items()
        for spec in runs
    ]


def tuning_record(member: Member, outcome: Outcome) -> CellRecord:
    """The record of a tuning run; one that diverged scores nothing."""
    if isinstance(outcome, FloatingPointError):
        return CellRecord(spec=member.spec, status="done", score=0.0, notes=(str(outcome),))
    return outcome[0]
