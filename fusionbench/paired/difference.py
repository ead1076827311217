"""One estimate from the pairs of one or several tasks: the crossed t of a task or of the suite.

A single task is in points of its metric. Several tasks are a weighted sum: every task counts the
same between chance (0) and perfect (1), see `stats.suite_weights`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fusionbench.paired.results import Gap, Pair, Results
from fusionbench.scores import ScoreTable
from fusionbench.stats.crossed import compare, crossed_t
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import suite_weights, sum_over_shared_runs, sum_over_tasks

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
