"""One estimate from the pairs of one or several tasks: the crossed t of a task or of the suite.

A single task is in points of its metric. Several tasks are a weighted sum: every task counts the
same between chance (0) and perfect (1), see `stats.suite_weights`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Run
from fusionbench.records.scores import ScoreTable, TaskFacts, score_tables
from fusionbench.records.store import Items, Store
from fusionbench.stats.crossed import compare, crossed_t
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import suite_weights, sum_over_shared_runs, sum_over_tasks

# A folder of results, read once: its score tables and the outcomes behind each cell.
#
# The pair is the unit of every comparison: two cells of one table that share task and seed, scored
# on the same examples. What cannot be paired is a `Gap` with its reason, never a number.


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


FEWEST_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Method minus reference over some tasks, with what it rests on."""

    estimate: Estimate
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]
    """Seeds that some cell lacks; left out everywhere."""
    identical: bool
    """The two scored alike on every example of every seed."""


def difference(
    results: Results,
    table: ScoreTable,
    rows: tuple[int, int],
    tasks: Sequence[int],
    *,
    beyond: Sequence[int] = (),
) -> Difference:
    """Row `rows[0]` minus row `rows[1]` over `tasks`, less the same over the tasks `beyond`.

    Only seeds that every cell has enter. Raises Gap if a cell is missing or there are too few.
    """
    pairs = common([results.pair(table, *rows, task) for task in (*tasks, *beyond)])
    weights = task_weights(table, tasks)
    if beyond:
        weights = np.concatenate([weights, -task_weights(table, beyond)])
    return Difference(
        estimate=combined(pairs, weights),
        tasks=tuple(pair.task.name for pair in pairs),
        seeds=pairs[0].seeds,
        unpaired=pairs[0].unpaired,
        identical=not any(pair.differences.any() for pair in pairs),
    )


def common(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs on the seeds that all of them have. Raises Gap below two seeds."""
    seeds = sorted(set.intersection(*(set(pair.seeds) for pair in pairs)))
    if len(seeds) < FEWEST_SEEDS:
        have = f"{len(seeds)} common seed" + ("" if len(seeds) == 1 else "s")
        raise Gap(f"{have}: the noise between runs needs at least {FEWEST_SEEDS}")
    cut = [pair.of_seeds(seeds) for pair in pairs]
    lost = tuple(sorted(set().union(*(pair.unpaired for pair in cut))))
    return [
        Pair(
            task=pair.task,
            seeds=pair.seeds,
            unpaired=lost,
            differences=pair.differences,
            groups=pair.groups,
            scope=pair.scope,
        )
        for pair in cut
    ]


def task_weights(table: ScoreTable, tasks: Sequence[int]) -> Float[np.ndarray, " task"]:
    """1 for a single task: its own points; else the suite's weights."""
    if len(tasks) == 1:
        return np.ones(1)
    return suite_weights(np.array([table.tasks[task].chance for task in tasks]))


def combined(pairs: Sequence[Pair], weights: Float[np.ndarray, " task"]) -> Estimate:
    """The crossed t of one task, or of the weighted sum over several. Raises Gap."""
    if len(pairs) == 1:
        return crossed_t(compare(pairs[0].differences, pairs[0].groups))
    parts = scaled(pairs, weights)
    scopes = {pair.scope for pair in pairs}
    if len(scopes) > 1:
        raise Gap("a seed is a run of one task in some tasks, of the whole suite in others")
    return sum_over_tasks(parts) if scopes == {"task"} else sum_over_shared_runs(parts)


def scaled(pairs: Sequence[Pair], weights: Float[np.ndarray, " task"]) -> list[TaskScores]:
    """The pairs as the statistics take them."""
    return [
        TaskScores(values=pair.differences, groups=pair.groups, weight=float(weight))
        for pair, weight in zip(pairs, weights, strict=True)
    ]
