"""What the methods' instruments say layer by layer, over seeds and tasks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import ScoreTable
from fusionbench.report.figures.material import Material
from fusionbench.report.tables import Row

_FEW_SEEDS = 6

Placed = tuple[CellRecord, tuple[int, int]]
"""A run and its task and seed in the table."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One instrument of one method: its median over seeds, a band, and a line for each task."""

    method: str
    key: str
    layers: Float[np.ndarray, " layer"]
    """Where each value belongs: the layer of a tap (the mean of a set), or the block."""
    single: bool
    """Whether each value belongs to one layer alone."""
    median: Float[np.ndarray, " layer"]
    low: Float[np.ndarray, " layer"]
    high: Float[np.ndarray, " layer"]
    tasks: Float[np.ndarray, "task layer"]

    def rows(self) -> list[Row]:
        """The curve for programs."""
        return [
            {"method": self.method, "instrument": self.key, "layer": f"{layer:g}",
             "median": f"{self.median[i]:.6f}", "low": f"{self.low[i]:.6f}",
             "high": f"{self.high[i]:.6f}"}
            for i, layer in enumerate(self.layers)
        ]  # fmt: skip


def traces(material: Material, row: int) -> dict[str, Trace]:
    """The instruments of one method by name; runs with other taps or another length do not count.

    The median and the band are over seeds, each seed the mean over tasks: the range for up to
    five seeds, the 10 to 90 % quantiles for more.
    """
    done = _done(material.table, row)
    keys = sorted({key for run, _ in done for key in run.trace})
    found = {key: _trace(material, row, key, done) for key in keys}
    return {key: trace for key, trace in found.items() if trace is not None}


def _done(table: ScoreTable, row: int) -> list[Placed]:
    """The finished runs of a method that left a trace."""
    seeds = {seed: place for place, seed in enumerate(table.seeds)}
    return [
        (run, (task, seeds[run.spec.seed]))
        for task in range(len(table.tasks))
        for run in table.runs(row, task)
        if run.status == "done" and run.trace
    ]


def _trace(material: Material, row: int, key: str, done: Sequence[Placed]) -> Trace | None:
    kinds = Counter((run.taps, len(run.trace[key])) for run, _ in done if run.trace.get(key))
    if not kinds:
        return None
    taps, length = min(kinds, key=lambda kind: (-kinds[kind], kind))
    values = _values(material.table, done, key, length)
    tapped = len(taps) == length and not material.in_encoder[row] and key == "layer_weights"
    by_seed = _mean(values, axis=0)
    by_seed = by_seed[~np.isnan(by_seed).any(axis=1)]
    if not len(by_seed):
        return None
    outer = (0.0, 1.0) if len(by_seed) < _FEW_SEEDS else (0.1, 0.9)
    low, median, high = np.quantile(by_seed, (outer[0], 0.5, outer[1]), axis=0)
    return Trace(
        method=material.labels[row],
        key=key,
        layers=np.array([np.mean(tap) for tap in taps] if tapped else range(1, length + 1)),
        single=not tapped or all(len(tap) == 1 for tap in taps),
        median=median,
        low=low,
        high=high,
        tasks=_mean(values, axis=1),
    )


def _values(
    table: ScoreTable, done: Sequence[Placed], key: str, length: int
) -> Float[np.ndarray, "task seed layer"]:
    values = np.full((len(table.tasks), len(table.seeds), length), np.nan)
    for run, place in done:
        trace = run.trace.get(key, [])
        if len(trace) == length:
            values[place] = trace
    return values


def _mean(
    values: Float[np.ndarray, "task seed layer"], axis: int
) -> Float[np.ndarray, "other layer"]:
    """The mean over what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
