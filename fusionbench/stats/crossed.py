"""The crossed t: the uncertainty of a difference for new runs and new images.

Every seed is scored on the same items, so the (seed, item) table of differences
d = y_method - y_reference is a two-way layout without replication (Cornfield and Tukey 1956).
Its three mean squares give the variance of the grand mean for new seeds *and* new items. A t over
seeds alone covers these images only (measured: 52 % coverage where items matter).

The degrees of freedom are Satterthwaite's with one change: a seed variance that happens to be
small would both shrink the variance and raise nu, which ruins small p-values at 5 seeds, so nu
alone sees the upper 80 % limit of the seed variance ("guarded").

S: seed, I: item.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped
from scipy.special import chdtri

from fusionbench.stats.estimate import Estimate, finite, two_way_layout
from fusionbench.stats.groups import by_group, discordant_groups

# Below this many items with any difference, two pseudo-items (+1, -1) represent the unseen ones.
FEW_DISCORDANT = 10


@dataclass(frozen=True, kw_only=True)
class Components:
    """The grand mean of a (seed, item) table and the three parts of its variance.

    `seed`, `item`, `both` are A, B, C = mean square / (seeds * items) for seeds, items and their
    interaction. `items` counts images (or groups), pseudo-items included; `discordant` counts
    the real ones in which any seed differs from zero.
    """

    value: Float[np.ndarray, "*batch"]
    seed: Float[np.ndarray, "*batch"]
    item: Float[np.ndarray, "*batch"]
    both: Float[np.ndarray, "*batch"]
    items: Float[np.ndarray, "*batch"]
    discordant: Int[np.ndarray, "*batch"]
    seeds: int

    @property
    def few_discordant(self) -> Bool[np.ndarray, "*batch"]:
        return np.asarray(self.discordant < FEW_DISCORDANT)

    @property
    def variance(self) -> Float[np.ndarray, "*batch"]:
        """Variance for new seeds and new items; never below the one-way variances."""
        crossed = self.seed + self.item - self.both
        return np.asarray(np.maximum(np.maximum(crossed, self.seed), self.item))


def two_way(values: Real[np.ndarray, "*batch seed item"]) -> Components:
    """Mean and variance components of a (seed, item) table, no pseudo-items.

    The numbers of a two-way analysis of variance without replication. ValueError on NaN or on a
    table smaller than 2 x 2.
    """
    table = two_way_layout("values", values)
    seeds, items = table.shape[-2:]
    seed_means, item_means = table.mean(axis=-1), table.mean(axis=-2)
    grand = seed_means.mean(axis=-1)
    by_seed = seed_means - grand[..., None]
    by_item = item_means - grand[..., None]
    rest = table - seed_means[..., None] - by_item[..., None, :]
    scale = seeds * items * (seeds - 1) * (items - 1)
    return Components(
        value=np.asarray(grand),
        seed=np.asarray(np.einsum("...s,...s", by_seed, by_seed) / (seeds * (seeds - 1))),
        item=np.asarray(np.einsum("...i,...i", by_item, by_item) / (items * (items - 1))),
        both=np.asarray(np.einsum("...si,...si", rest, rest) / scale),
        items=np.full(grand.shape, float(items)),
        discordant=np.asarray((table != 0).any(axis=-2).sum(axis=-1)),
        seeds=seeds,
    )


def weighted_sum(
    weights: Real[np.ndarray, " row"], scores: Real[np.ndarray, "row seed item"]
) -> Float[np.ndarray, "seed item"]:
    """A contrast of rows within one (seed, item), for `compare` or, task by task, for the suite."""
    table = finite("scores", scores)
    if len(table) != len(weights):
        raise ValueError(f"needs {len(weights)} rows of scores, got {len(table)}")
    return np.asarray(np.tensordot(weights, table, 1))


def compare(
    differences: Real[np.ndarray, "*batch seed item"],
    groups: Shaped[np.ndarray, " item"] | None = None,
) -> Components:
    """Components of a paired difference, ready for `crossed_t`.

    `groups` names the image of each question: questions about one image are one item, since
    ignoring that covers 75 to 83 % instead of 95 %. With fewer than `FEW_DISCORDANT` discordant
    items two pseudo-items enter the variance (not the value), in the unit of a score in [0, 1]:
    the interval is then about 2.8 / items, a rule of three, and never empty.
    """
    if groups is None:
        parts = two_way(differences)
        return with_pseudo_items(parts, parts.few_discordant)
    table = two_way_layout("differences", differences)
    parts = replace(two_way(by_group(table, groups)), discordant=discordant_groups(table, groups))
    return with_pseudo_items(parts, parts.few_discordant)


def with_pseudo_items(
    parts: Components, where: Bool[np.ndarray, "..."], *, size: float = 1.0
) -> Components:
    """`parts` as if two more items had shown +size and -size in every seed; the value stays.

    In closed form: the means shrink by items / (items + 2), and what the seeds lose there goes
    to the interaction.
    """
    seeds, items = parts.seeds, parts.items
    more = items + 2
    shrink = items / more
    mean = shrink * parts.value
    item_squares = (
        items * (items - 1) * parts.item
        + items * (parts.value - mean) ** 2
        + 2 * (size**2 + mean**2)
    )
    seed_squares = seeds * (seeds - 1) * parts.seed
    rest_squares = seeds * items * (seeds - 1) * (items - 1) * parts.both
    both = (rest_squares + 2 * shrink * seed_squares) / (seeds * more * (seeds - 1) * (more - 1))
    return replace(
        parts,
        seed=np.where(where, shrink**2 * parts.seed, parts.seed),
        item=np.where(where, item_squares / (more * (more - 1)), parts.item),
        both=np.where(where, both, parts.both),
        items=np.where(where, more, items),
    )


def guard(seeds: int) -> float:
    """Upper 80 % limit of a variance on `seeds` runs, as a factor (5: 2.43, 10: 1.67)."""
    return float((seeds - 1) / chdtri(seeds - 1, 0.80))


def crossed_t(parts: Components) -> Estimate:
    """The estimate of every verdict: new runs, new images, these tasks, this training pool."""
    return satterthwaite(parts, guard(parts.seeds))


def satterthwaite(parts: Components, factor: float) -> Estimate:
    """Crossed t whose nu sees `factor` times the seed variance; 1 is the plain, unguarded nu."""
    variance, seeds, items = parts.variance, parts.seeds, parts.items
    seed = factor * parts.seed
    total = seed + (variance - parts.seed)
    spread = (
        seed**2 / (seeds - 1)
        + parts.item**2 / (items - 1)
        + parts.both**2 / ((seeds - 1) * (items - 1))
    )
    floor = np.full(np.shape(total), float(seeds - 1))
    nu = np.divide(total**2, spread, out=floor.copy(), where=spread > 0)
    return Estimate(
        value=parts.value,
        variance=variance,
        nu=np.asarray(np.maximum(floor, nu)),
        replicates=seeds,
    )
