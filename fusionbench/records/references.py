"""References of a table of scores: single layers read in closed form, and the method `blind`.

A reference is a cell of one hidden state with the ridge reader: of the study itself where that is
its reader, else with `reader=ridge`. The study's own reader is measured against them, and a task on
which no layer is above chance leaves the aggregate.

The method `blind` has zeros in place of image tokens and is trained like the others. A task on
which the mean of the methods is not above it, paired over images, says nothing about vision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import t as student

from fusionbench.records.cell import READER, RIDGE, CellRecord, reader_of
from fusionbench.records.scores import BLIND, INSENSITIVE, SATURATED, ScoreTable
from fusionbench.stats.power import LEVEL, above_chance, insensitive, over_tasks, saturated

_FEWEST_LAYERS = 3
"""With fewer layers nothing is said about a task."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Mean scores of single layers on one task, 0 to 1."""

    layers: Mapping[int, float]
    """Hidden state -> score with the ridge reader."""
    own: Mapping[int, float]
    """Hidden state -> score with the study's reader; the same if that is the ridge reader."""
    p: float
    """Of the best layer against chance, corrected for the number of layers."""

    @property
    def best(self) -> int:
        """The hidden state with the highest score; ties go to the first."""
        return max(sorted(self.layers), key=lambda layer: self.layers[layer])

    @property
    def last(self) -> int:
        """The last hidden state."""
        return max(self.layers)

    @property
    def unread(self) -> float | None:
        """Best reference minus the best layer of the study's reader; None without one."""
        return self.layers[self.best] - max(self.own.values()) if self.own else None


def single_layer(record: CellRecord) -> int | None:
    """The hidden state that the cell reads, if it reads one as it is; else None."""
    settings = set(record.spec.settings) - {READER}
    if record.status != "done" or settings != {"index"} or len(record.taps) != 1:
        return None
    return record.taps[0][0] if len(record.taps[0]) == 1 else None


def references(table: ScoreTable) -> dict[int, Reference]:
    """The reference of each task that has at least three layers, by column."""
    budget = table.condition.budget
    found: dict[int, Reference] = {}
    for column, task in enumerate(table.tasks):
        layers: dict[int, float] = {}
        own: dict[int, float] = {}
        for row in range(len(table.methods)):
            # A run that failed has no taps.
            runs = [run for run in table.runs(row, column) if run.status == "done"]
            layer = single_layer(runs[0]) if runs else None
            if layer is None:
                continue
            reader, mean = reader_of(runs[0].spec.settings, budget), _mean(table, row, column)
            if reader == RIDGE:
                layers[layer] = mean
            if reader == budget.reader:
                own[layer] = mean
        if len(layers) >= _FEWEST_LAYERS:
            p = above_chance(np.array(list(layers.values())), task.chance, task.examples)
            found[column] = Reference(layers=layers, own=own, p=p)
    return found


def marked(table: ScoreTable) -> ScoreTable:
    """The table with insensitive and saturated tasks marked.

    If every task were insensitive, none is marked: an aggregate without tasks says nothing.
    """
    found = references(table)
    columns = sorted(found)
    weak = insensitive(np.array([found[column].p for column in columns]))
    marks = {column: INSENSITIVE for column, one in zip(columns, weak, strict=True) if one}
    suite = [column for column, task in enumerate(table.tasks) if task.in_suite]
    if all(column in marks for column in suite):
        marks = {}
    for column in columns:
        if saturated(np.array(list(found[column].layers.values()))):
            marks[column] = SATURATED
    tasks = tuple(
        replace(task, mark=marks.get(column, "")) for column, task in enumerate(table.tasks)
    )
    return replace(table, tasks=tasks)


def _mean(table: ScoreTable, row: int, column: int) -> float:
    return float(np.nanmean(table.values[row, column]))


_METHOD = "blind"
Outcomes = Callable[[CellRecord], Shaped[np.ndarray, " item"]]
Images = Callable[[CellRecord], Int[np.ndarray, " item"]]


def above_blind(
    seeing: Float[np.ndarray, " item"],
    blind: Float[np.ndarray, " item"],
    images: Int[np.ndarray, " item"],
) -> float:
    """One-sided p of "models that see are better", by a t test of the differences over images.

    seeing, blind: mean outcome of each item; images: the number of each item's image. Returns 1
    for a single image and where no difference is positive.
    """
    _, place = np.unique(images, return_inverse=True)
    sizes = np.bincount(place)
    means = np.bincount(place, weights=seeing - blind) / sizes
    count = len(means)
    if count < 2 or means.mean() <= 0:
        return 1.0
    spread = means.std(ddof=1) / np.sqrt(count)
    return 0.0 if spread == 0 else float(student.sf(means.mean() / spread, count - 1))


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The models that see against the one that does not, on one task."""

    seeing: float
    """Mean score of all methods but `blind` and those that read the answers."""
    blind: float
    images: int
    methods: int
    p: float
    """Of "models that see are better", corrected over the tasks by Holm."""

    @property
    def above(self) -> bool:
        """Whether the models that see are above `blind`, at 5 %."""
        return self.p <= LEVEL


def compared(table: ScoreTable, outcomes: Outcomes, images: Images) -> Mapping[int, Compared]:
    """The comparison on each task with cells of `blind` and of other methods, by column.

    Empty for a table of the track `probe`.
    """
    if table.condition.training is None or _METHOD not in table.methods:
        return {}
    row = table.methods.index(_METHOD)
    found: dict[int, Compared] = {}
    for column in range(len(table.tasks)):
        blind = _done(table, [row], column)
        others = [one for one in range(len(table.methods)) if one not in {row, *table.leaky}]
        # Cells of other examples than the blind model's are compared with nothing.
        seeing = [o for o in _done(table, others, column) if blind and o.items == blind[0].items]
        if seeing:
            found[column] = _compared(
                _mean_outcomes(seeing, outcomes),
                _mean_outcomes(blind, outcomes),
                images(blind[0]),
                methods=len({(one.label, one.spec.method) for one in seeing}),
            )
    columns = sorted(found)
    corrected = over_tasks(np.array([found[column].p for column in columns]))
    return {c: replace(found[c], p=float(p)) for c, p in zip(columns, corrected, strict=True)}


def _compared(
    seeing: Float[np.ndarray, " item"],
    blind: Float[np.ndarray, " item"],
    images: Int[np.ndarray, " item"],
    methods: int,
) -> Compared:
    return Compared(
        seeing=float(seeing.mean()),
        blind=float(blind.mean()),
        images=len(np.unique(images)),
        methods=methods,
        p=above_blind(seeing, blind, images),
    )


def marked_by_blind(table: ScoreTable, outcomes: Outcomes, images: Images) -> ScoreTable:
    """The table with the tasks marked on which methods are not above `blind`.

    A table of the track `probe`, or without the method, stays as it is. If every task were marked,
    none is: an aggregate without tasks says nothing.
    """
    found = compared(table, outcomes, images)
    weak = {column for column, one in found.items() if not one.above}
    if all(column in weak for column, task in enumerate(table.tasks) if task.in_suite):
        weak = set()
    tasks = (
        replace(task, mark=BLIND) if column in weak else task
        for column, task in enumerate(table.tasks)
    )
    return replace(table, tasks=tuple(tasks))


def _done(table: ScoreTable, rows: Sequence[int], column: int) -> list[CellRecord]:
    runs = [record for row in rows for record in table.runs(row, column)]
    return [record for record in runs if record.status == "done" and record.outcomes]


def _mean_outcomes(cells: Sequence[CellRecord], outcomes: Outcomes) -> Float[np.ndarray, " item"]:
    return np.mean([outcomes(cell).astype(np.float64) for cell in cells], axis=0)
