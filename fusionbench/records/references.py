"""What single layers hold, read by the closed-form reader: the references of a table of scores.

A reference is a cell of one hidden state with the ridge reader: of the study itself where that is
its reader, else with `reader=ridge`. The study's own reader is measured against them, and a task on
which no layer is above chance leaves the aggregate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fusionbench.records.cell import READER, RIDGE, CellRecord, reader_of
from fusionbench.records.scores import INSENSITIVE, SATURATED, ScoreTable
from fusionbench.stats.power import above_chance, insensitive, saturated

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
            runs = table.runs(row, column)
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
