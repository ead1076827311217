"""From tasks to the suite: one weighted mean, two ways to add up its variance.

`seed_scope` of the records decides which. If every task has its own runs, the seeds of two tasks
are different draws and variances add. If one run serves all tasks, its seed effect is common to
them: scores are summed over tasks first (adding variances gives 14 % false alarms at 5 %). Tasks
are fixed in both; `over_families` infers to new tasks.

S: seed.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Float, Real

from fusionbench.stats.crossed import (
    FEW_DISCORDANT,
    Components,
    crossed_t,
    guard,
    t_over_seeds,
    two_way,
    with_pseudo_items,
)
from fusionbench.stats.estimate import Estimate, finite
from fusionbench.stats.groups import TaskScores, discordant_groups, merge, refuse_unequal_seeds

FEWEST_FAMILIES = 5


def suite_weights(chance: Real[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
    """1 / (T * (1 - chance)): every task counts the same from chance (0) to perfect (1)."""
    levels = finite("chance", chance)
    if not ((levels >= 0) & (levels < 1)).all():
        raise ValueError(f"chance levels must lie in [0, 1), got {levels.tolist()}")
    return 1 / (len(levels) * (1 - levels))


def shared_image_blocks(tasks: Sequence[TaskScores]) -> list[list[TaskScores]]:
    """Tasks joined into blocks wherever they share an image, directly or through others."""
    images = [frozenset(task.images.tolist()) for task in tasks]
    block_of = list(range(len(tasks)))
    for one, two in combinations(range(len(tasks)), 2):
        old, new = sorted((block_of[one], block_of[two]), reverse=True)
        if old != new and not images[one].isdisjoint(images[two]):
            block_of = [new if block == old else block for block in block_of]
    blocks: dict[int, list[TaskScores]] = defaultdict(list)
    for index, task in enumerate(tasks):
        blocks[block_of[index]].append(task)
    return list(blocks.values())


def block_components(block: Sequence[TaskScores]) -> Components:
    """Components of the weighted sum over a block of tasks whose images overlap.

    A task with few discordant images adds its own two pseudo-images, so that a large task in the
    same block does not hide its unknown variance.
    """
    table = merge(block)
    parts = two_way(table)
    counts = [discordant_groups(task.values, task.groups) for task in block]
    for task, count in zip(block, counts, strict=True):
        size = task.weight * table.shape[-1] / len(task.images)
        parts = with_pseudo_items(parts, np.asarray(count < FEW_DISCORDANT), size=size)
    return replace(parts, discordant=np.asarray(np.min(counts, axis=0)))


def sum_over_tasks(tasks: Sequence[TaskScores]) -> Estimate:
    """The suite difference where every task has its own runs (`seed_scope: task`)."""
    return add_blocks([block_components(block) for block in shared_image_blocks(tasks)])


def sum_over_shared_runs(tasks: Sequence[TaskScores]) -> Estimate:
    """The suite difference where one run serves all tasks (`seed_scope: suite`).

    Seed s must be the same run in every task. ValueError if the numbers of seeds differ.
    """
    blocks = [block_components(block) for block in shared_image_blocks(tasks)]
    return add_blocks_of_shared_runs(blocks, t_over_seeds(seed_sums(tasks)))


def seed_sums(tasks: Sequence[TaskScores]) -> Float[np.ndarray, "*batch seed"]:
    """Each run's weighted sum over tasks, in points of the suite."""
    refuse_unequal_seeds(tasks)
    sums = [task.weight * task.table.mean(axis=-1) for task in tasks]
    return np.asarray(np.sum(sums, axis=0))


def add_blocks(blocks: Sequence[Components]) -> Estimate:
    """Independent blocks: variances add, nu by Satterthwaite over the blocks' own guarded nu."""
    from_blocks = [crossed_t(block) for block in blocks]
    variances = np.stack([estimate.variance for estimate in from_blocks])
    nus = np.stack([estimate.nu for estimate in from_blocks])
    variance = variances.sum(axis=0)
    spread = (variances**2 / nus).sum(axis=0)
    fewest = nus.min(axis=0)
    return Estimate(
        value=np.asarray(np.sum([block.value for block in blocks], axis=0)),
        variance=np.asarray(variance),
        nu=np.divide(variance**2, spread, out=np.asarray(fewest), where=spread > 0),
        replicates=min(block.seeds for block in blocks),
    )


def add_blocks_of_shared_runs(blocks: Sequence[Components], runs: Estimate) -> Estimate:
    """Shared runs: the seed variance of the runs' suite sums, plus every block's item part.

    `runs` is the t over seeds of `seed_sums`.
    """
    seeds = runs.replicates
    item_part = np.sum([np.maximum(block.item - block.both, 0) for block in blocks], axis=0)
    guarded = guard(seeds) * runs.variance
    spread = guarded**2 / (seeds - 1)
    for block in blocks:
        item_spread = block.item**2 + block.both**2 / (seeds - 1)
        spread = spread + item_spread / (block.items - 1)
    nu = np.divide((guarded + item_part) ** 2, spread, out=runs.nu.copy(), where=spread > 0)
    return Estimate(
        value=runs.value,
        variance=np.asarray(runs.variance + item_part),
        nu=np.asarray(np.maximum(runs.nu, nu)),
        replicates=seeds,
    )


def over_families(differences: Real[np.ndarray, " task"], families: Sequence[str]) -> Estimate:
    """New tasks like these: t over the means of task families (siblings are one family).

    `differences` are already on the suite's scale. They contain the noise of runs and images, so
    none is added. ValueError below `FEWEST_FAMILIES` families.
    """
    values = finite("differences", differences)
    if len(families) != len(values):
        raise ValueError(f"needs one family per task ({len(values)}), got {len(families)}")
    names = sorted(set(families))
    if len(names) < FEWEST_FAMILIES:
        raise ValueError(
            f"a claim about new tasks needs at least {FEWEST_FAMILIES} task families, "
            f"got {len(names)}: {names}"
        )
    labels = np.asarray(families)
    means = np.array([values[labels == name].mean() for name in names])
    return Estimate(
        value=np.asarray(means.mean()),
        variance=np.asarray(means.var(ddof=1) / len(names)),
        nu=np.asarray(len(names) - 1.0),
        replicates=len(names),
    )
