"""Contrasts of methods: weighted sums of rows on the same tasks, seeds and examples.

Each contrast becomes one crossed t over new runs and new images. A single task is in points of its
metric; several tasks are a weighted sum in which every task counts the same between chance (0) and
perfect (1), see `stats.suite_weights`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Shaped

from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Request
from fusionbench.records.references import marked, marked_by_blind
from fusionbench.records.scores import ScoreTable, TaskFacts, score_tables
from fusionbench.records.store import Items, Store
from fusionbench.stats.crossed import t_over_seeds, weighted_sum
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.groups import TaskScores, discordant_groups
from fusionbench.stats.suite import suite_weights, sum_over_shared_runs, sum_over_tasks

FEWEST_SEEDS = 2
"""One run has no interval."""
NO_TASK = "no task counts"
"""Gap of an aggregate over no task: all of them are insensitive or marked `blind`."""


class NotComparable(Exception):
    """Why rows of a table cannot be compared on a task; one line of text."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A contrast on one task: the weighted sum of rows on the same seeds and examples."""

    task: TaskFacts
    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]
    """Seeds that only some of the rows have; left out."""
    differences: Float[np.ndarray, "seed item"]
    groups: Shaped[np.ndarray, " item"]
    """The image of each item."""
    scope: Literal["task", "suite"]
    """Whether a seed is a run of this task alone or of all tasks."""

    def of_seeds(self, seeds: Sequence[int]) -> "Pair":
        """The pair on some of its seeds; the others count as unpaired."""
        keep = [index for index, seed in enumerate(self.seeds) if seed in seeds]
        return replace(
            self,
            seeds=tuple(self.seeds[index] for index in keep),
            unpaired=tuple(sorted({*self.unpaired, *self.seeds} - set(seeds))),
            differences=self.differences[keep],
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A contrast over one or several tasks, or the reason (`gap`) why it has no estimate."""

    gap: str = ""
    estimate: Estimate | None = None
    """New runs and new images (crossed t): the estimate behind every verdict."""
    runs: Estimate | None = None
    """New runs on these test images (t over seeds)."""
    by_seed: Float[np.ndarray, " seed"] | None = None
    by_task: Float[np.ndarray, " task"] | None = None
    """Mean difference of each task, from chance (0) to perfect (1)."""
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    unpaired: tuple[int, ...] = ()
    """Seeds that some cell lacks; left out of every task."""
    examples: int = 0
    discordant: int = 0
    """Images with a nonzero difference in some run; the smallest count over tasks."""
    identical: bool = False
    """The difference is zero on every example of every seed."""

    @property
    def untestable(self) -> str:
        """Why there is no p-value; empty where there is one."""
        if self.gap:
            return self.gap
        if len(self.seeds) < FEWEST_REPLICATES:
            return f"{len(self.seeds)} runs: no test below {FEWEST_REPLICATES}"
        return ""


class Results:
    """The tables of a folder, with outcomes and items read when they are asked for."""

    def __init__(self, store: Store, finished: Mapping[str, Path] | None = None) -> None:
        cells = store.finished(reread=True) if finished is None else finished
        self.store = store
        self.records: list[CellRecord] = [*store.records(cells), *store.failures(cells)]
        self.tables: list[ScoreTable] = [marked(one) for one in score_tables(self.records)]
        self._outcomes: dict[str, Shaped[np.ndarray, " item"]] = {}
        self._items: dict[str, Items] = {}
        self._numbers: dict[str, int] = {}
        self._images: dict[str, Int[np.ndarray, " item"]] = {}
        self.tables = [marked_by_blind(one, self.outcomes, self.images) for one in self.tables]

    @staticmethod
    def open(folder: object) -> "Results":
        """Read a folder. Raises UserError if it is none or holds no record."""
        results = Results(Store.open(str(folder)))
        if not results.records:
            raise UserError(f"{folder} holds no records", "run a study into it first")
        return results

    @property
    def planned(self) -> Request | None:
        """The last request, with its study; None without a history."""
        return next(reversed(self.store.history.requests()), None)

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

    def pair(self, table: ScoreTable, weights: Mapping[int, float], task: int) -> Pair:
        """The weighted sum of rows of a table on one of its tasks. Raises NotComparable."""
        rows = [finished(table, row, task) for row in weights]
        name = table.tasks[task].name
        seeds = sorted(set.intersection(*(set(row) for row in rows)))
        if not seeds:
            which = "both" if len(rows) == 2 else f"all {len(rows)}"
            raise NotComparable(f"no seed has {which} on {name}")
        cells = [[row[seed] for seed in seeds] for row in rows]
        every = [cell for row in cells for cell in row]
        require_paired(every, name)
        groups = self.images(every[0])
        require_images(groups, name)
        scores = np.stack([[self.outcomes(cell) for cell in row] for row in cells])
        return Pair(
            task=table.tasks[task],
            seeds=tuple(seeds),
            unpaired=tuple(sorted(set().union(*rows) - set(seeds))),
            differences=weighted_sum(np.array(list(weights.values())), scores),
            groups=groups,
            scope=one_scope(every, name),
        )

    def try_pair(
        self, table: ScoreTable, weights: Mapping[int, float], task: int
    ) -> Pair | NotComparable:
        """`pair`, with the reason returned instead of raised."""
        try:
            return self.pair(table, weights, task)
        except NotComparable as reason:
            return reason

    def contrast(
        self,
        table: ScoreTable,
        weights: Mapping[int, float],
        tasks: Sequence[int],
        task_weights: Float[np.ndarray, " task"],
    ) -> Measured:
        """The weighted sum of rows over some tasks of a table."""
        return measure([self.try_pair(table, weights, task) for task in tasks], task_weights)


def minus(method: int, reference: int) -> dict[int, float]:
    """Weights of one row minus another."""
    return {method: 1.0, reference: -1.0}


def finished(table: ScoreTable, method: int, task: int) -> dict[int, CellRecord]:
    """Done cells of a method on a task by seed. Raises NotComparable if there is none."""
    here = table.runs(method, task)
    done = {record.spec.seed: record for record in here if record.status == "done"}
    if done:
        return done
    name = f"{table.methods[method]} on {table.tasks[task].name}"
    if not here:
        raise NotComparable(f"{name} was not run")
    reason = here[0].reason.strip().splitlines() or ["no reason given"]
    raise NotComparable(f"{name} {here[0].status}: {reason[-1]}")


def several_images(groups: Shaped[np.ndarray, " item"]) -> bool:
    """Whether there is more than one image, which an estimate of the noise between them needs."""
    return bool((groups != groups[0]).any())


def require_images(groups: Shaped[np.ndarray, " item"], task: str) -> None:
    """Raise NotComparable where all examples are of one image: their noise cannot be estimated."""
    if not several_images(groups):
        raise NotComparable(f"all examples of {task} belong to one image")


def require_paired(cells: Sequence[CellRecord], task: str) -> None:
    """Raise NotComparable unless all cells keep outcomes of the same examples."""
    if not all(cell.outcomes for cell in cells):
        raise NotComparable(f"a cell on {task} kept no outcomes of its examples")
    if len({cell.items for cell in cells}) > 1:
        raise NotComparable(f"scored on different examples of {task}")


def one_scope(cells: Sequence[CellRecord], task: str) -> Literal["task", "suite"]:
    """The seed scope of cells on one task. Raises NotComparable if they do not agree."""
    scopes = {cell.seed_scope for cell in cells}
    if len(scopes) > 1:
        raise NotComparable(
            f"on {task} a seed is a run of the task in some cells, of the suite in others"
        )
    return cells[0].seed_scope


def measure(pairs: Sequence[Pair | NotComparable], weights: Float[np.ndarray, " task"]) -> Measured:
    """The contrast over all tasks of `pairs`; a single missing task leaves a gap.

    With one common seed there is a gap, too, but `by_seed` and `by_task` hold its values.
    """
    found = [pair for pair in pairs if isinstance(pair, Pair)]
    gaps = [pair for pair in pairs if isinstance(pair, NotComparable)]
    if gaps:
        tasks = f"{len(found)} of {len(pairs)} tasks: " if len(pairs) > 1 else ""
        return Measured(gap=f"{tasks}{gaps[0]}")
    try:
        shared = common(found)
    except NotComparable as gap:
        return Measured(gap=str(gap))
    chance = np.array([pair.task.chance for pair in shared])
    by_seed = [w * pair.differences.mean(axis=-1) for pair, w in zip(shared, weights, strict=True)]
    measured = Measured(
        by_seed=np.sum(by_seed, axis=0),
        by_task=np.array([pair.differences.mean() for pair in shared]) / (1 - chance),
        tasks=tuple(pair.task.name for pair in shared),
        seeds=shared[0].seeds,
        unpaired=shared[0].unpaired,
        examples=sum(pair.differences.shape[-1] for pair in shared),
        discordant=min(int(discordant_groups(p.differences, p.groups)) for p in shared),
        identical=not any(pair.differences.any() for pair in shared),
    )
    try:
        estimate = combined(shared, weights)
    except NotComparable as gap:
        return replace(measured, gap=str(gap))
    return replace(measured, estimate=estimate, runs=t_over_seeds(np.sum(by_seed, axis=0)))


def common(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs on the seeds that all of them have. Raises NotComparable if there is none."""
    if not pairs:
        raise NotComparable(NO_TASK)
    seeds = sorted(set.intersection(*(set(pair.seeds) for pair in pairs)))
    if not seeds:
        raise NotComparable("0 common seeds")
    cut = [pair.of_seeds(seeds) for pair in pairs]
    lost = tuple(sorted(set().union(*(pair.unpaired for pair in cut))))
    return [replace(pair, unpaired=lost) for pair in cut]


def task_weights(table: ScoreTable, tasks: Sequence[int]) -> Float[np.ndarray, " task"]:
    """1 for a single task: its own points; else the suite's weights."""
    return np.ones(1) if len(tasks) == 1 else corrected_weights(table, tasks)


def corrected_weights(table: ScoreTable, tasks: Sequence[int]) -> Float[np.ndarray, " task"]:
    """The suite's weights: the mean over tasks, each from chance (0) to perfect (1)."""
    return suite_weights(np.array([table.tasks[task].chance for task in tasks]))


def combined(pairs: Sequence[Pair], weights: Float[np.ndarray, " task"]) -> Estimate:
    """The crossed t of the weighted sum over tasks. Raises NotComparable below two seeds."""
    seeds = len(pairs[0].seeds)
    if seeds < FEWEST_SEEDS:
        raise NotComparable(f"1 common seed: the noise between runs needs at least {FEWEST_SEEDS}")
    parts = scaled(pairs, weights)
    shared = shared_runs(pairs)
    return sum_over_shared_runs(parts) if shared else sum_over_tasks(parts)


def shared_runs(pairs: Sequence[Pair]) -> bool:
    """Whether one run serves all of several tasks. Raises NotComparable for a mixture."""
    scopes = {pair.scope for pair in pairs}
    if len(scopes) > 1:
        raise NotComparable("a seed is a run of one task in some tasks, of the suite in others")
    return len(pairs) > 1 and scopes == {"suite"}


def scaled(pairs: Sequence[Pair], weights: Float[np.ndarray, " task"]) -> list[TaskScores]:
    """The pairs as weighted tasks of the statistics."""
    return [
        TaskScores(values=pair.differences, groups=pair.groups, weight=float(weight))
        for pair, weight in zip(pairs, weights, strict=True)
    ]
