"""Tasks that a model answers as well without an image: they leave the aggregate.

The method `blind` has zeros in place of image tokens and is trained like the others. A task on
which the mean of the methods is not above it, paired over images, says nothing about vision.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import t as student

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import BLIND, ScoreTable
from fusionbench.stats.verdicts import holm

LEVEL = 0.05
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


def marked_by_blind(table: ScoreTable, outcomes: Outcomes, images: Images) -> ScoreTable:
    """The table with the tasks marked on which methods are not above `blind`.

    p is corrected over the tasks by Holm, at 5 %. A table of the track `probe`, or
    without the method, stays as it is. If every task were marked, none is: an aggregate without
    tasks says nothing.
    """
    if table.condition.training is None or _METHOD not in table.methods:
        return table
    row = table.methods.index(_METHOD)
    p_values: dict[int, float] = {}
    for column in range(len(table.tasks)):
        blind = _done(table, [row], column)
        others = [one for one in range(len(table.methods)) if one not in {row, *table.leaky}]
        seeing = _done(table, others, column)
        # Cells of other examples than the blind model's are compared with nothing.
        seeing = [one for one in seeing if blind and one.items == blind[0].items]
        if blind and seeing:
            p_values[column] = above_blind(
                _mean(seeing, outcomes), _mean(blind, outcomes), images(blind[0])
            )
    columns = sorted(p_values)
    corrected = holm(np.array([p_values[column] for column in columns]))
    weak = {c for c, p in zip(columns, corrected, strict=True) if p > LEVEL}
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


def _mean(cells: Sequence[CellRecord], outcomes: Outcomes) -> Float[np.ndarray, " item"]:
    return np.mean([outcomes(cell).astype(np.float64) for cell in cells], axis=0)
