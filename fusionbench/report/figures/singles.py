"""What single layers are worth, measured: on their own, and by their absence.

`DIR/probes/*.json` hold an object per task with `encoder`, `task` and `layers`, a score for each
layer of a linear probe on frozen features; `without` in its place holds the score of `method`
with that layer left out. A score may be a list, one number per seed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        str(one["task"]): _scores(one["layers"])
        for one in material.probes
        if one.get("task") in known and one.get("layers")
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


def without_map(material: Material) -> Iterator[Map]:
    """What each method loses without a layer, in points."""
    for row, method in enumerate(material.table.methods):
        tasks = {}
        for one in material.probes:
            full = _full(material, row, str(one.get("task")))
            if one.get("method") == method and one.get("without") and not np.isnan(full):
                scores = _scores(one["without"])
                tasks[str(one["task"])] = {at: full - score for at, score in scores.items()}
        found = _map(f"{method} without a layer", "leave-one-out", tasks, method=method)
        if found is not None:
            yield found


def _map(title: str, short: str, tasks: Mapping[str, Scores], *, method: str = "") -> Map | None:
    if not tasks:
        return None
    unit = "points lost" if method else "score, %"
    found = Map(title=title, short=short, unit=unit, tasks=tasks, method=method)
    return found if len(found.means) > 1 else None


def _scores(layers: Mapping[str, Any]) -> Scores:
    return {float(layer): 100 * float(np.mean(score)) for layer, score in layers.items()}


def _full(material: Material, row: int, task: str) -> float:
    columns = [i for i, one in enumerate(material.table.tasks) if one.name == task]
    if not columns:
        return float("nan")
    scores = material.table.values[row, columns[0]]
    return float(100 * np.nanmean(scores)) if not np.isnan(scores).all() else float("nan")
