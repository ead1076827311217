"""A difference for new runs and new images (the crossed t), and for this test set alone.

Every seed is scored on the same items, so the (seed, item) table of differences
d = y_method - y_reference is a two-way layout without replication (Cornfield and Tukey 1956).
Its three mean squares give the variance of the grand mean for new seeds *and* new items. A t over
seeds alone covers these images only (measured: 52 % coverage where items matter).

The degrees of freedom are Satterthwaite's with one change: a seed variance that happens to be
small would both shrink the variance and raise nu, which ruins small p-values at 5 seeds, so nu
alone sees the upper 80 % limit of the seed variance ("guarded").

S: seed, I: item.

No verdict rests on the inference for this test set, by sign flips: without a difference, method and
reference of a seed are exchangeable. With n seeds there are 2^n sign patterns, so no p-value is
below 2 / 2^n: 5 seeds cannot reach 0.05.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

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


# Up to here all sign patterns are listed; beyond, this many are drawn from the stated key.
MOST_LISTED_SEEDS = 12
DRAWN_FLIPS = 10_000
FLIP_KEY = 20_240_229


@dataclass(frozen=True, kw_only=True)
class FlipTest:
    """p-values of a sign-flip test, and the smallest one that this many seeds can give."""

    p_value: Float[np.ndarray, "*batch"]
    smallest_p: float


def t_over_seeds(seed_differences: Real[np.ndarray, "*batch seed"]) -> Estimate:
    """Student's t over the seeds' mean differences: new runs, this test set."""
    values = _per_seed(seed_differences)
    seeds = values.shape[-1]
    mean = np.asarray(values.mean(axis=-1))
    return Estimate(
        value=mean,
        variance=np.asarray(values.var(axis=-1, ddof=1) / seeds),
        nu=np.full(mean.shape, float(seeds - 1)),
        replicates=seeds,
    )


def step_down_max_t(seed_differences: Real[np.ndarray, "contrast seed"]) -> FlipTest:
    """Adjusted p-values of a group of contrasts; the signs of a seed flip jointly in all of them.

    Westfall and Young's step-down (1993, algorithm 2.8): the flips preserve the
    correlation of the contrasts: near-clones cost no power, and 6 seeds can reach 0.05.
    """
    values_KS = _per_seed(seed_differences)
    flips_FS = sign_patterns(values_KS.shape[-1])
    scale_K = np.sqrt((values_KS**2).sum(axis=-1))
    # |sum| / root of the sum of squares: the same ranking as |t|, but never infinite.
    unit_KS = np.divide(
        values_KS, scale_K[:, None], out=np.zeros_like(values_KS), where=scale_K[:, None] > 0
    )
    observed_K = np.abs(unit_KS.sum(axis=-1))
    order_K = np.argsort(-observed_K, kind="stable")
    flipped_KF = np.abs(unit_KS[order_K] @ flips_FS.T)
    largest_KF = np.maximum.accumulate(flipped_KF[::-1], axis=0)[::-1]
    # Equal sums differ in their last bits when added in another order.
    reached_K = (largest_KF >= observed_K[order_K, None] - 1e-12).mean(axis=-1)
    adjusted_K = np.empty_like(reached_K)
    adjusted_K[order_K] = np.maximum.accumulate(reached_K)
    return FlipTest(p_value=adjusted_K, smallest_p=smallest_p(values_KS.shape[-1]))


def smallest_p(seeds: int) -> float:
    """The smallest p-value a sign-flip test can give, for one contrast or any group."""
    if seeds <= MOST_LISTED_SEEDS:
        return 2 / 2**seeds
    return 1 / (DRAWN_FLIPS + 1)


@lru_cache(maxsize=16)
def sign_patterns(seeds: int, key: int = FLIP_KEY) -> Float[np.ndarray, "flip seed"]:
    """All patterns of +1 and -1 (half of them: the statistics are two-sided), or 10,000 drawn.

    The drawn ones depend on `key` alone and begin with the data as they are.
    """
    if seeds <= MOST_LISTED_SEEDS:
        bits = np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)
        return 1.0 - 2.0 * (bits & 1)
    drawn = np.random.default_rng(key).integers(0, 2, size=(DRAWN_FLIPS, seeds))
    return np.concatenate([np.ones((1, seeds)), 1.0 - 2.0 * drawn])


def _per_seed(values: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    numbers = finite("seed differences", values)
    if numbers.ndim < 1 or numbers.shape[-1] < 2:
        raise ValueError(f"needs at least 2 seeds on the last axis, got shape {numbers.shape}")
    return numbers
