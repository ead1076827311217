"""Power: the minimum detectable effect (MDE) for any number of seeds and images.

The variance of a difference is V(n, I) = seed / n + item / I + both / (n I). From a pilot's mean
squares these three give the components at any other n and I, and the crossed t then gives the
MDE: planning and reporting use one formula.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from fusionbench.stats.crossed import Components, guard
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.suite import add_blocks, add_blocks_of_shared_runs

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
