"""Power: the minimum detectable effect (MDE), and whether a task can tell methods apart.

The variance of a difference is V(n, I) = seed / n + item / I + both / (n I). From a pilot's mean
squares these three give the components at any other n and I, and the crossed t then gives the
MDE: planning and reporting use one formula.

A task is insensitive if no single layer is above chance (Holm over tasks), and saturated if every
layer is nearly perfect. The rule looks at no fusion method, so it favours none; it is applied to
the test examples, since a task must be readable where methods are compared.

The p of the best of several layers is Bonferroni's. Layers are correlated, so it is too large
rather than too small: a task is left out too often rather than too rarely.

Over the tasks of a suite the p are corrected by Holm: with 5 %, at most one suite in twenty of
tasks that no layer can read keeps one of them (a test simulates it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import bdtrc

from fusionbench.stats.crossed import Components, guard
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.suite import add_blocks, add_blocks_of_shared_runs
from fusionbench.stats.verdicts import holm

# Enough for "infinitely many": the seeds' part is then below 0.1 % of any standard error.
ENDLESS_SEEDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class VarianceParts:
    """Variance components of one (seed, item) difference: seed, item and interaction."""

    seed: Float[np.ndarray, "*batch"]
    item: Float[np.ndarray, "*batch"]
    both: Float[np.ndarray, "*batch"]

    def at(self, seeds: int, items: int) -> Components:
        """The components to be expected from `seeds` runs on `items` images."""
        both = self.both / (seeds * items)
        return Components(
            value=np.zeros(np.shape(both)),
            seed=np.asarray(self.seed / seeds + both),
            item=np.asarray(self.item / items + both),
            both=np.asarray(both),
            items=np.full(np.shape(both), float(items)),
            discordant=np.full(np.shape(both), items),
            seeds=seeds,
        )


def variance_parts(parts: Components) -> VarianceParts:
    """Unbiased but for the floor at zero: differences of mean squares."""
    both = parts.seeds * parts.items * parts.both
    return VarianceParts(
        seed=np.asarray(np.maximum(parts.seeds * parts.seed - both / parts.items, 0)),
        item=np.asarray(np.maximum(parts.items * parts.item - both / parts.seeds, 0)),
        both=np.asarray(both),
    )


def pilot_parts(parts: Components) -> VarianceParts:
    """Components with the upper 80 % limit of the seed variance, to plan from a small pilot.

    The variance of 3 to 5 runs is as often far too small as too large.
    """
    return variance_parts(replace(parts, seed=np.asarray(guard(parts.seeds) * parts.seed)))


def seeds_needed(
    mde_at: Callable[[int], float], effect: float, *, fewest: int = 4, most: int = 200
) -> int | None:
    """The first number of seeds whose MDE is at most `effect`; None if `most` are not enough."""
    if not effect > 0:
        raise ValueError(f"effect must be positive, got {effect}")
    return next((seeds for seeds in range(fewest, most + 1) if mde_at(seeds) <= effect), None)


def suite_at(blocks: Sequence[VarianceParts], items: Sequence[int], *, seeds: int) -> Estimate:
    """The suite estimate to expect where every task has its own runs (`seed_scope: task`).

    The parts come from blocks that carry their weights (`suite.block_components`).
    """
    return add_blocks([block.at(seeds, count) for block, count in zip(blocks, items, strict=True)])


def shared_suite_at(
    blocks: Sequence[VarianceParts],
    items: Sequence[int],
    *,
    run_variance: Float[np.ndarray, "*batch"],
    seeds: int,
) -> Estimate:
    """The same where one run serves all tasks (`seed_scope: suite`).

    `run_variance` is that of one run's suite sum: the pilot's variance over seeds, times its
    guard when planning cautiously.
    """
    runs = Estimate(
        value=np.zeros(np.shape(run_variance)),
        variance=np.asarray(run_variance / seeds),
        nu=np.full(np.shape(run_variance), seeds - 1.0),
        replicates=seeds,
    )
    parts = [block.at(seeds, count) for block, count in zip(blocks, items, strict=True)]
    return add_blocks_of_shared_runs(parts, runs)


LEVEL = 0.05
SATURATED = 0.98
"""A task is saturated if every layer scores more.

No method can be better than single layers there."""


def above_chance(scores: Float[np.ndarray, " layer"], chance: float, examples: int) -> float:
    """One-sided p of the best layer against chance, times the number of layers (Bonferroni).

    scores: mean scores of single layers over seeds, 0 to 1; chance: the score of a guesser;
    examples: test examples behind each score. Returns a p between 0 and 1. Raises ValueError for
    scores or a chance outside 0 to 1, and without examples.

    Binomial, for a guesser on `examples` independent examples; the mean over seeds, rounded down
    to whole examples, varies less than one seed does.
    """
    if not (0 <= float(np.min(scores)) and float(np.max(scores)) <= 1 and 0 <= chance <= 1):
        raise ValueError(f"scores and chance must lie in [0, 1], got {scores.tolist()}, {chance}")
    if examples < 1:
        raise ValueError("a task without test examples has no score")
    right = int(np.floor(float(np.max(scores)) * examples + 1e-9))
    if right == 0:
        return 1.0
    return min(1.0, float(bdtrc(right - 1, examples, chance)) * len(scores))


def over_tasks(p_values: Float[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
    """The p of each task's comparison with the blind model, corrected over the tasks by Holm."""
    return holm(p_values)


def insensitive(p_values: Float[np.ndarray, " task"]) -> Bool[np.ndarray, " task"]:
    """Tasks whose best layer is not above chance at 5 %, corrected over the tasks by Holm.

    p_values: one per task, from `above_chance`. Returns True for each task that cannot tell
    methods apart.
    """
    return holm(p_values) > LEVEL


def saturated(scores: Float[np.ndarray, " layer"]) -> bool:
    """Whether every layer scores more than 98 %.

    scores: mean scores of all layers, 0 to 1.
    """
    return bool(np.min(scores) > SATURATED)
