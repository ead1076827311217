"""One method minus another over the suite, a group of tasks or one task: all that tests rest on.

A measurement depends on its two methods alone; which others were run changes no bit of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from fusionbench.records.pairs import Gap, Pair, Results, combined, common, scaled
from fusionbench.records.scores import ScoreTable
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.groups import discordant_groups
from fusionbench.stats.suite import seed_sums, suite_weights, sum_over_tasks
from fusionbench.stats.testset import t_over_seeds

Level = Literal["suite", "group", "task"]


@dataclass(frozen=True, kw_only=True, order=True)
class Scope:
    """What a difference is taken over; `tasks` are columns of the table."""

    level: Level
    name: str
    tasks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A difference with its two kinds of noise, or the reason why there is none."""

    gap: str = ""
    """Why nothing could be measured; then all the rest is empty."""
    estimate: Estimate | None = None
    """New runs and new images (crossed t): what verdicts rest on."""
    runs: Estimate | None = None
    """New runs on these very images (t over seeds)."""
    by_seed: Float[np.ndarray, " seed"] | None = None
    by_task: Float[np.ndarray, " task"] | None = None
    """Mean difference of each task, from chance (0) to perfect (1)."""
    seeds: tuple[int, ...] = ()
    examples: int = 0
    discordant: int = 0
    """Images on which the two differ in some run; the fewest of any task."""

    @property
    def untestable(self) -> str:
        """Why there is no p-value; empty where there is one."""
        if self.gap:
            return self.gap
        if len(self.seeds) < FEWEST_REPLICATES:
            return f"{len(self.seeds)} runs: no test below {FEWEST_REPLICATES}"
        return ""


def scopes(table: ScoreTable) -> tuple[Scope, ...]:
    """The suite, its groups of tasks, and each task."""
    columns = range(len(table.tasks))
    groups = sorted({task.group for task in table.tasks if task.group})
    found = [Scope(level="suite", name="suite", tasks=tuple(columns))]
    for group in groups:
        tasks = tuple(index for index in columns if table.tasks[index].group == group)
        found.append(Scope(level="group", name=group, tasks=tasks))
    found += [Scope(level="task", name=table.tasks[one].name, tasks=(one,)) for one in columns]
    return tuple(found)


class Measurer:
    """Measures pairs of methods of one table, each only once."""

    def __init__(self, results: Results, table: ScoreTable) -> None:
        self._results = results
        self._table = table
        self.scopes = scopes(table)
        self._known: dict[tuple[int, int], Mapping[Scope, Measured]] = {}

    def against(self, method: int, reference: int) -> Mapping[Scope, Measured]:
        """Row `method` minus row `reference`, over every scope."""
        if (method, reference) not in self._known:
            pairs = [self._pair(method, reference, task) for task in range(len(self._table.tasks))]
            self._known[method, reference] = {
                scope: self._measured(scope, [pairs[task] for task in scope.tasks])
                for scope in self.scopes
            }
        return self._known[method, reference]

    def _pair(self, method: int, reference: int, task: int) -> Pair | Gap:
        try:
            return self._results.pair(self._table, method, reference, task)
        except Gap as gap:
            return gap

    def _measured(self, scope: Scope, pairs: Sequence[Pair | Gap]) -> Measured:
        here = [pair for pair in pairs if isinstance(pair, Pair)]
        gaps = [pair for pair in pairs if isinstance(pair, Gap)]
        if gaps and len(pairs) > 1:
            return Measured(gap=f"{len(here)} of {len(pairs)} tasks: {gaps[0]}")
        if gaps:
            return Measured(gap=str(gaps[0]))
        try:
            shared = common(here)
            weights = weights_of(self._table, scope)
            estimate = _estimate(scope, shared, weights)
        except Gap as gap:
            return Measured(gap=str(gap))
        return _measured(shared, weights, estimate)


def weights_of(table: ScoreTable, scope: Scope) -> Float[np.ndarray, " task"]:
    """A task counts in its own points; an aggregate, be it of one task, from chance to perfect."""
    if scope.level == "task":
        return np.ones(1)
    return suite_weights(np.array([table.tasks[task].chance for task in scope.tasks]))


def _estimate(scope: Scope, pairs: Sequence[Pair], weights: Float[np.ndarray, " task"]) -> Estimate:
    if scope.level != "task" and len(pairs) == 1:
        return sum_over_tasks(scaled(pairs, weights))
    return combined(pairs, weights)


def _measured(
    pairs: Sequence[Pair], weights: Float[np.ndarray, " task"], estimate: Estimate
) -> Measured:
    by_seed = seed_sums(scaled(pairs, weights))
    chance = np.array([pair.task.chance for pair in pairs])
    means = np.array([pair.differences.mean() for pair in pairs])
    counts = [int(discordant_groups(pair.differences, pair.groups)) for pair in pairs]
    return Measured(
        estimate=estimate,
        runs=t_over_seeds(by_seed),
        by_seed=by_seed,
        by_task=means / (1 - chance),
        seeds=pairs[0].seeds,
        examples=sum(pair.differences.shape[-1] for pair in pairs),
        discordant=min(counts),
    )
