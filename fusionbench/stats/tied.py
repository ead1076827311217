"""All pairs of methods in one column, and the set of methods that may be the best.

990 pairs per task get no p-values: the set holds the methods that the data cannot exclude from
first place. Squared distances between rows come from one matrix product each
(|a - b|^2 = |a|^2 + |b|^2 - 2 a.b), so all pairs cost little more than one.

M: method, S: seed, G: image (group of items).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fusionbench.stats.crossed import FEW_DISCORDANT, Components, crossed_t, with_pseudo_items
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.groups import TaskScores, discordant_groups, merge
from fusionbench.stats.suite import (
    add_blocks,
    add_blocks_of_shared_runs,
    seed_sums,
    shared_image_blocks,
)


def tied_set(pairs: Estimate, *, alpha: float = 0.05) -> Bool[np.ndarray, " method"]:
    """Which methods stay: not clearly below any other, at alpha / (methods - 1), one-sided.

    `pairs.value[m, k]` is method m minus method k. The set holds the truly best method of this
    column with at least 95 % probability; not being in bold is no verdict.
    """
    methods = len(pairs.value)
    if pairs.value.shape != (methods, methods):
        raise ValueError(f"needs a (method, method) table of pairs, got {pairs.value.shape}")
    if methods == 1:
        return np.ones(1, dtype=np.bool_)
    reach = pairs.quantile(1 - alpha / (methods - 1)) * pairs.se
    return np.asarray((pairs.value + reach >= 0).all(axis=1))


def task_pairs(task: TaskScores) -> Estimate:
    """Crossed t of every method against every other; `task.values` is (method, seed, item)."""
    return crossed_t(pair_components([task]))


def suite_pairs(tasks: Sequence[TaskScores]) -> Estimate:
    """All pairs on the suite where every task has its own runs (`seed_scope: task`)."""
    return add_blocks([pair_components(block) for block in shared_image_blocks(tasks)])


def shared_run_suite_pairs(tasks: Sequence[TaskScores]) -> Estimate:
    """All pairs on the suite where one run serves all tasks (`seed_scope: suite`)."""
    sums_MS = seed_sums(tasks)
    seeds = sums_MS.shape[-1]
    mean_M = sums_MS.mean(axis=-1)
    runs = Estimate(
        value=mean_M[:, None] - mean_M,
        variance=squared_distances(sums_MS - mean_M[:, None]) / (seeds * (seeds - 1)),
        nu=np.full((len(mean_M), len(mean_M)), seeds - 1.0),
        replicates=seeds,
    )
    blocks = [pair_components(block) for block in shared_image_blocks(tasks)]
    return add_blocks_of_shared_runs(blocks, runs)


def pair_components(block: Sequence[TaskScores]) -> Components:
    """`suite.block_components` of every difference of two methods, without forming them."""
    table_MSG = merge(block)
    methods, seeds, images = table_MSG.shape
    mean_M = table_MSG.mean(axis=(-2, -1))
    by_seed_MS = table_MSG.mean(axis=-1) - mean_M[:, None]
    by_item_MG = table_MSG.mean(axis=-2) - mean_M[:, None]
    rest_MSG = table_MSG - table_MSG.mean(axis=-1, keepdims=True) - by_item_MG[:, None, :]
    rest = squared_distances(rest_MSG.reshape(methods, -1))
    counts = [discordant_pairs(task) for task in block]
    parts = Components(
        value=mean_M[:, None] - mean_M,
        seed=squared_distances(by_seed_MS) / (seeds * (seeds - 1)),
        item=squared_distances(by_item_MG) / (images * (images - 1)),
        both=rest / (seeds * images * (seeds - 1) * (images - 1)),
        items=np.full((methods, methods), float(images)),
        discordant=np.min(counts, axis=0),
        seeds=seeds,
    )
    for task, count in zip(block, counts, strict=True):
        size = task.weight * images / len(task.images)
        parts = with_pseudo_items(parts, count < FEW_DISCORDANT, size=size)
    return parts


def discordant_pairs(task: TaskScores) -> Int[np.ndarray, "method method"]:
    """How many images each two methods answer differently in any seed."""
    values_MSI = np.asarray(task.values)
    if values_MSI.dtype == np.bool_:
        # Eight seeds in a byte: two methods differ on an item where any of its bytes does.
        values_MSI = np.packbits(values_MSI, axis=1)
    rows = [discordant_groups(values_MSI != one_SI, task.groups) for one_SI in values_MSI]
    return np.stack(rows)


def squared_distances(rows: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row row"]:
    """Squared Euclidean distance of every two rows; never negative, zero to itself."""
    products = rows @ rows.T
    norms = np.diag(products)
    distances = np.maximum(norms[:, None] + norms - 2 * products, 0)
    np.fill_diagonal(distances, 0)
    return distances
