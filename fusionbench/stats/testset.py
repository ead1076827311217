"""Inference for this test set: new runs on the same test images. No verdict rests on it.

Sign-flip tests: without a difference, method and reference of a seed are exchangeable. With n
seeds there are 2^n sign patterns, so no p-value is below 2 / 2^n: 5 seeds cannot reach 0.05.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Real

from fusionbench.stats.estimate import Estimate, finite

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
