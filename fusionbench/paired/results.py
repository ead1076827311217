"""A folder of results, read once: its score tables and the outcomes behind each cell.

The pair is the unit of every comparison: two cells of one table that share task and seed, scored
on the same examples. What cannot be paired is a `Gap` with its reason, never a number.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from fusionbench.api.errors import UserError
from fusionbench.history import Run
from fusionbench.outcomes import Items
from fusionbench.records import CellRecord
from fusionbench.scores import ScoreTable, TaskFacts, score_tables
from fusionbench.store import Store


class Gap(Exception):
    """Why two methods cannot be compared on a task; the text is one line for a reader."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One task: what a method scored more than its reference, on the same seeds and examples."""

    task: TaskFacts
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]
    """Seeds that only one of the two has; they are left out, and said."""
    differences: Float[np.ndarray, "seed item"]
    groups: Shaped[np.ndarray, " item"]
    """The image of each item."""
    scope: Literal["task", "suite"]
    """Whether a seed is a run of this task alone or of all tasks."""

    def of_seeds(self, seeds: Sequence[int]) -> "Pair":
        """The pair on some of its seeds; the others count as unpaired."""
        keep = [index for index, seed in enumerate(self.seeds) if seed in seeds]
        left = set(self.seeds) - set(seeds)
        return Pair(
            task=self.task,
            seeds=tuple(self.seeds[index] for index in keep),
            unpaired=tuple(sorted({*self.unpaired, *left})),
            differences=self.differences[keep],
            groups=self.groups,
            scope=self.scope,
        )


class Results:
    """The tables of a folder, with outcomes and items read when they are asked for."""

    def __init__(self, store: Store, finished: Mapping[str, Path] | None = None) -> None:
        cells = store.finished() if finished is None else finished
        self.store = store
        self.records: list[CellRecord] = [*store.records(cells), *store.failures(cells)]
        self.tables: list[ScoreTable] = score_tables(self.records)
        self._outcomes: dict[str, Shaped[np.ndarray, " item"]] = {}
        self._items: dict[str, Items] = {}
        self._numbers: dict[str, int] = {}
        self._images: dict[str, Int[np.ndarray, " item"]] = {}

    @staticmethod
    def open(folder: object) -> "Results":
        """Read a folder. Raises UserError if it is none or holds no record."""
        results = Results(Store.open(str(folder)))
        if not results.records:
            raise UserError(f"{folder} holds no records", "run a study into it first")
        return results

    @property
    def planned(self) -> Run | None:
        """The last request, with its study; None where the folder does not say."""
        return next(reversed(self.store.history.runs()), None)

    def outcomes(self, record: CellRecord) -> Shaped[np.ndarray, " item"]:
        """A score for each example of a finished cell; right or wrong as booleans."""
        # By the hash of their file: a cell's id is computed anew from all of its fields.
        if record.outcomes not in self._outcomes:
            scores = self.store.outcomes(record)
            # A byte per answer instead of four: a large study has 10^8 of them.
            binary = bool(((scores == 0) | (scores == 1)).all())
            self._outcomes[record.outcomes] = scores.astype(np.bool_) if binary else scores
        return self._outcomes[record.outcomes]

    def items(self, record: CellRecord) -> Items:
        """The examples of a finished cell."""
        if record.items not in self._items:
            self._items[record.items] = self.store.items(record)
        return self._items[record.items]

    def images(self, record: CellRecord) -> Int[np.ndarray, " item"]:
        """A number for the image of each example; the same image has it in every task."""
        if not self._images:
            self.number_images()
        if record.items not in self._images:
            self._images[record.items] = self._numbered(record)
        return self._images[record.items]

    def number_images(self) -> None:
        """All at once, condition by condition and task by task.

        The order of numbers decides in which order sums are taken, so it must not depend on which
        condition a process looks at first.
        """
        for record in self._scored_on():
            # A file that cannot be read is an error only for who asks for it.
            with suppress(UserError):
                self._images[record.items] = self._numbered(record)

    def _numbered(self, record: CellRecord) -> Int[np.ndarray, " item"]:
        known = self._numbers
        groups = self.items(record).groups
        return np.array([known.setdefault(name, len(known)) for name in groups], dtype=np.int64)

    def _scored_on(self) -> Iterable[CellRecord]:
        """A record for each file of examples."""
        found: dict[str, CellRecord] = {}
        for table in self.tables:
            for _, record in sorted(table.cells.items(), key=lambda cell: (cell[0][1], cell[0])):
                if record.items:
                    found.setdefault(record.items, record)
        return found.values()

    def pair(self, table: ScoreTable, method: int, reference: int, task: int) -> Pair:
        """Differences of two rows of a table on one of its tasks. Raises Gap."""
        mine, theirs = (finished(table, row, task) for row in (method, reference))
        seeds = sorted(mine.keys() & theirs.keys())
        if not seeds:
            raise Gap(f"no seed has both on {table.tasks[task].name}")
        cells = [mine[seed] for seed in seeds] + [theirs[seed] for seed in seeds]
        if not all(cell.outcomes for cell in cells):
            raise Gap(f"a cell on {table.tasks[task].name} kept no outcomes of its examples")
        if len({cell.items for cell in cells}) > 1:
            raise Gap(f"scored on different examples of {table.tasks[task].name}")
        rows = np.stack([self.outcomes(cell) for cell in cells]).astype(np.float64)
        return Pair(
            task=table.tasks[task],
            seeds=tuple(seeds),
            unpaired=tuple(sorted(mine.keys() ^ theirs.keys())),
            differences=rows[: len(seeds)] - rows[len(seeds) :],
            groups=self.images(cells[0]),
            scope=one_scope(cells, table.tasks[task].name),
        )


def finished(table: ScoreTable, method: int, task: int) -> dict[int, CellRecord]:
    """Done cells of a method on a task by seed. Raises Gap, with the reason, if there is none."""
    here = table.runs(method, task)
    done = {record.spec.seed: record for record in here if record.status == "done"}
    if done:
        return done
    name = f"{table.methods[method]} on {table.tasks[task].name}"
    if not here:
        raise Gap(f"{name} was not run")
    reason = here[0].reason.strip().splitlines() or ["no reason given"]
    raise Gap(f"{name} {here[0].status}: {reason[-1]}")


def one_scope(cells: Sequence[CellRecord], task: str) -> Literal["task", "suite"]:
    """What a seed of these cells stands for. Raises Gap if they do not agree."""
    scopes = {cell.seed_scope for cell in cells}
    if len(scopes) > 1:
        raise Gap(f"on {task} a seed is a run of the task in some cells, of the suite in others")
    return cells[0].seed_scope
