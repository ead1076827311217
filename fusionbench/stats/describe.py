"""Pictures of many scores at once (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264).

Descriptive: no p-value and no verdict comes from here.
"""

import numpy as np
from jaxtyping import Bool, Float, Real

from fusionbench.stats.refusals import finite

FAR_IN_MADS = 5


def iqm(scores: Real[np.ndarray, "run task"]) -> float:
    """Mean of the middle half of all scores: steadier than the median, deaf to outliers."""
    ordered = np.sort(finite("scores", scores), axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def performance_profile(
    scores: Real[np.ndarray, "run task"], thresholds: Real[np.ndarray, " threshold"]
) -> Float[np.ndarray, " threshold"]:
    """Share of all (run, task) scores above each threshold."""
    ordered = np.sort(finite("scores", scores), axis=None)
    above = ordered.size - np.searchsorted(ordered, finite("thresholds", thresholds), side="right")
    return above / ordered.size


def probability_of_improvement(
    scores: Real[np.ndarray, "run task"], others: Real[np.ndarray, "other_run other_task"]
) -> float:
    """How often a run of the first beats a run of the second on a task drawn at random.

    Ties count half (Mann-Whitney); 0.5 is no difference.
    """
    first, second = finite("scores", scores), finite("others", others)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"needs the same tasks, got {first.shape[1]} and {second.shape[1]}")
    gaps = first[:, None, :] - second[None, :, :]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def outlying_seeds(
    seed_scores: Real[np.ndarray, "*batch seed"], *, step: float = 0.0
) -> Bool[np.ndarray, "*batch seed"]:
    """Runs more than 5 MAD from the median: look at them, every mean-based interval bends.

    MAD is the plain median absolute deviation. The flag is an invitation, not a finding: among
    normal runs it goes up in 22 of 100 sets of 5 seeds and in 14 of 100 sets of 10.

    `step` is the smallest change a score can make (1 / items); MAD is never taken as less, or one
    answer would flag a run where most runs agree.
    """
    values = finite("seed scores", seed_scores)
    distance = np.abs(values - np.median(values, axis=-1, keepdims=True))
    mad = np.maximum(np.median(distance, axis=-1, keepdims=True), step)
    return np.asarray(distance > FAR_IN_MADS * mad)
