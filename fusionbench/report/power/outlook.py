"""One contrast looked at ahead: its smallest detectable effect now, with more seeds, and for ever.

The variance of a difference has a part that more seeds shrink and one that only more images do;
both are estimated from the records at hand (the pilot), see `stats.power`. A single task is one
block of images, the suite a sum of weighted ones, so both go the same way here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fusionbench.records.pairs import Gap, Pair, Results, combined, common, scaled, task_weights
from fusionbench.records.scores import ScoreTable
from fusionbench.stats.crossed import Components, guard
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.power import (
    ENDLESS_SEEDS,
    VarianceParts,
    pilot_parts,
    seeds_needed,
    shared_suite_at,
    suite_at,
    variance_parts,
)
from fusionbench.stats.suite import block_components, seed_sums, shared_image_blocks
from fusionbench.stats.testset import t_over_seeds

AT_SEEDS = (5, 10, 20)
FEWEST, MOST = 4, 200
"""No test below 4 seeds; beyond 200 nobody asks."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is planned for."""

    effect: float
    """The true difference to be found with 80 % power, in points."""
    contrasts: int
    """How many planned contrasts share the 5 %."""
    pilot: bool
    """Plan with the upper 80 % limit of the pilot's seed variance."""

    @property
    def alpha(self) -> float:
        """The level of the first Holm step."""
        return 0.05 / self.contrasts


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """A contrast over one task or several; effects are in points."""

    method: str
    reference: str
    over: str
    tasks: int
    seeds: int
    images: int
    mde: float
    mde_at: tuple[float, ...]
    """With each number of seeds of `AT_SEEDS`."""
    floor: float
    """What no number of seeds would find on these images."""
    needed: int | None
    """Seeds for the goal's effect; None: not with `MOST`."""
    identical: bool
    """The two methods are the same function here: nothing to plan for."""


def outlook(
    results: Results,
    table: ScoreTable,
    rows: tuple[int, int],
    tasks: Sequence[int],
    *,
    over: str,
    goal: Goal,
) -> Outlook:
    """Look ahead at row `rows[0]` minus row `rows[1]` over some tasks. Raises Gap."""
    pairs = common([results.pair(table, *rows, task) for task in tasks])
    weights = task_weights(table, tasks)
    now = combined(pairs, weights)
    mde_at = _mde_at(pairs, weights, goal)
    floor = mde_at(ENDLESS_SEEDS)
    return Outlook(
        method=table.methods[rows[0]],
        reference=table.methods[rows[1]],
        over=over,
        tasks=len(tasks),
        seeds=len(pairs[0].seeds),
        images=sum(len(np.unique(pair.groups)) for pair in pairs),
        mde=100 * float(now.mde(goal.alpha)),
        mde_at=tuple(mde_at(seeds) for seeds in AT_SEEDS),
        floor=floor,
        needed=None if floor > goal.effect else needed(mde_at, goal.effect),
        identical=not any(pair.differences.any() for pair in pairs),
    )


def needed(mde_at: Callable[[int], float], effect: float) -> int | None:
    """Fewest seeds whose MDE is at most `effect`: doubled until enough, then one by one."""
    low = high = FEWEST
    while mde_at(high) > effect:
        if high == MOST:
            return None
        low, high = high, min(2 * high, MOST)
    return seeds_needed(mde_at, effect, fewest=low, most=high)


def _mde_at(
    pairs: Sequence[Pair], weights: Float[np.ndarray, " task"], goal: Goal
) -> Callable[[int], float]:
    """The MDE in points as a function of the number of seeds."""
    tasks = scaled(pairs, weights)
    blocks = [block_components(block) for block in shared_image_blocks(tasks)]
    split = pilot_parts if goal.pilot else variance_parts
    parts = [split(block) for block in blocks]
    expected = _expected(pairs, tasks, parts, blocks, pilot=goal.pilot)
    return lambda seeds: 100 * float(expected(seeds).mde(goal.alpha))


def _expected(
    pairs: Sequence[Pair],
    tasks: Sequence[TaskScores],
    parts: Sequence[VarianceParts],
    blocks: Sequence[Components],
    *,
    pilot: bool,
) -> Callable[[int], Estimate]:
    items = [int(block.items) for block in blocks]
    scopes = {pair.scope for pair in pairs}
    if len(scopes) > 1:
        raise Gap("a seed is a run of one task in some tasks, of the whole suite in others")
    if scopes == {"task"} or len(pairs) == 1:
        return lambda seeds: suite_at(parts, items, seeds=seeds)
    runs = t_over_seeds(seed_sums(tasks))
    factor = guard(runs.replicates) if pilot else 1.0
    one_run = np.asarray(factor * runs.replicates * runs.variance)
    return lambda seeds: shared_suite_at(parts, items, run_variance=one_run, seeds=seeds)
