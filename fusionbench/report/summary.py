"""A cell, a row, a suite in numbers: the mean over seeds and its t interval.

The unit of resampling is the training run: the interval says what another set of seeds would give
on the same test examples. It compares no two methods.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from fusionbench.records.scores import ScoreTable
from fusionbench.stats.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean over seeds, 0 to 1; without runs `why` says what happened instead."""

    mean: float = float("nan")
    low: float = float("nan")
    """Ends of the 95 % t interval over seeds; NaN for a single run."""
    high: float = float("nan")
    runs: int = 0
    seeds: int = 0
    """Runs that the other cells of the table have."""
    why: str = "not run"
    images: bool = False
    """Whether the interval speaks of new images too, not of new runs alone."""

    @property
    def text(self) -> str:
        """In percent: `71.2 ± 3.1`, `71.2 (1 run)`, `71.2 ± 3.1 (2 of 3 runs)`, `not run`."""
        if not self.runs:
            return self.why
        mean = f"{100 * self.mean:.1f}"
        if self.runs == 1:
            return f"{mean} (1 run)" if self.seeds == 1 else f"{mean} (1 of {self.seeds} runs)"
        text = f"{mean} ± {50 * (self.high - self.low):.1f}"
        return text if self.runs == self.seeds else f"{text} ({self.runs} of {self.seeds} runs)"


def over_seeds(scores: Float[np.ndarray, " seed"], why: str = "not run") -> Summary:
    """Summarise one score per seed; NaN is a run that is missing and counts for nothing."""
    present = scores[~np.isnan(scores)]
    runs = len(present)
    if not runs:
        return Summary(seeds=len(scores), why=why)
    mean = float(present.mean())
    if runs == 1:
        return Summary(mean=mean, runs=1, seeds=len(scores))
    estimate = Estimate(
        value=np.asarray(mean),
        variance=np.asarray(present.var(ddof=1) / runs),
        nu=np.asarray(runs - 1.0),
        replicates=runs,
    )
    low, high = (float(end) for end in estimate.interval())
    return Summary(mean=mean, low=low, high=high, runs=runs, seeds=len(scores))


def cell(table: ScoreTable, method: int, task: int) -> Summary:
    """One method on one task."""
    return over_seeds(table.values[method, task], _why(table, method, task))


def across(table: ScoreTable, method: int, keep: Bool[np.ndarray, " task"]) -> Summary:
    """The plain mean over some tasks, seed by seed; refused unless all of them ran alike."""
    if method in table.leaky:
        return Summary(why="reads the answers")
    scores = table.values[method, keep]
    if not len(scores):
        return Summary(why="no task")
    complete = int((~np.isnan(scores)).all(axis=1).sum())
    if complete < len(scores):
        return Summary(seeds=len(table.seeds), why=f"{complete} of {len(scores)} tasks")
    return over_seeds(scores.mean(axis=0))


def _why(table: ScoreTable, method: int, task: int) -> str:
    statuses = {record.status for record in table.runs(method, task)}
    return "failed" if "failed" in statuses else "skipped" if "skipped" in statuses else "not run"
