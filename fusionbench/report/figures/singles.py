"""What single layers are worth, measured: on their own, and by their absence.

On their own: `DIR/probes/*.json` (`fusionbench probe-layers`, linear probes of every hidden state),
and the study's cells of single layers. By their absence: two cells of one method that differ in
the setting of its layers, where one reads all that the other reads but one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fusionbench.records.cell import CellRecord
from fusionbench.report.figures.material import Material
from fusionbench.report.tables import Row

Scores = Mapping[float, float]
"""Layer -> score."""


@dataclass(frozen=True, kw_only=True)
class Map:
    """A number for each layer: the mean over tasks, and each task."""

    title: str
    short: str
    """How a correlation names it."""
    unit: str
    tasks: Mapping[str, Scores]
    method: str = ""
    """The method it belongs to; empty if it belongs to the encoder."""

    @property
    def means(self) -> Scores:
        """Over the tasks, for layers that all of them know."""
        common = set.intersection(*(set(values) for values in self.tasks.values()))
        return {
            layer: float(np.mean([values[layer] for values in self.tasks.values()]))
            for layer in sorted(common)
        }

    def rows(self) -> list[Row]:
        """The map for programs, task by task."""
        return [
            {"method": self.method, "instrument": f"{self.short}: {task}", "layer": f"{layer:g}",
             "median": f"{score:.6f}", "low": "", "high": ""}
            for task, values in self.tasks.items()
            for layer, score in sorted(values.items())
        ]  # fmt: skip


def probe_map(material: Material) -> Map | None:
    """From `fusionbench probe-layers`; None where it was not run for a task of the table."""
    known = {task.name for task in material.table.tasks}
    tasks = {
        one.task: {float(layer): 100 * score for layer, score in enumerate(one.layers)}
        for one in material.probes
        if one.task in known
    }
    return _map("each layer, linear probe", "the probe", tasks)


def single_map(material: Material) -> Map | None:
    """From the study's own cells of single layers; None below three layers.

    A single layer is a method whose one setting is `index` and that taps one hidden state.
    """
    tasks: dict[str, dict[float, float]] = {}
    table = material.table
    for row in range(len(table.methods)):
        for column, task in enumerate(table.tasks):
            runs = [run for run in table.runs(row, column) if run.status == "done"]
            if runs and set(runs[0].spec.settings) == {"index"} and len(runs[0].taps) == 1:
                scores = 100 * table.values[row, column]
                layer = float(np.mean(runs[0].taps[0]))
                tasks.setdefault(task.name, {})[layer] = float(np.nanmean(scores))
    complete = {task: values for task, values in tasks.items() if len(values) > 2}
    return _map("each layer alone, same reader", "single layers", complete)


def without_maps(material: Material) -> Iterator[Map]:
    """What each method loses without a layer, in points; it was trained anew without it."""
    table = material.table
    for row in range(len(table.methods)):
        tasks: dict[str, dict[float, float]] = {}
        for other in range(len(table.methods)):
            for task, layer, lost in _lost(material, row, other):
                tasks.setdefault(task, {})[layer] = lost
        label = material.labels[row]
        found = _map(f"{label} without a layer", "leave-one-out", tasks, method=label)
        if found is not None:
            yield found


def _lost(material: Material, row: int, other: int) -> Iterator[tuple[str, float, float]]:
    """(task, layer, points) wherever `other` is the same method without one layer."""
    table = material.table
    names = {table.row(one)[0].spec.method for one in (row, other)}
    for column, task in enumerate(table.tasks if len(names) == 1 else ()):
        full, less = table.runs(row, column)[:1], table.runs(other, column)[:1]
        if not full or not less or not _same_but_layers(full[0], less[0]):
            continue
        missing = set(full[0].taps) - set(less[0].taps)
        if set(less[0].taps) < set(full[0].taps) and len(missing) == 1:
            apart = 100 * (table.values[row, column] - table.values[other, column])
            if not np.isnan(apart).all():
                yield task.name, float(np.mean(missing.pop())), float(np.nanmean(apart))


def _same_but_layers(first: CellRecord, second: CellRecord) -> bool:
    one, two = first.spec.settings, second.spec.settings
    if first.spec.method != second.spec.method or one.keys() != two.keys():
        return False
    return [key for key in one if one[key] != two[key]] == ["layers"]


def _map(title: str, short: str, tasks: Mapping[str, Scores], *, method: str = "") -> Map | None:
    if not tasks:
        return None
    unit = "points lost" if method else "score, %"
    found = Map(title=title, short=short, unit=unit, tasks=tasks, method=method)
    return found if len(found.means) > 1 else None
