"""Ranks over tasks and score profiles: descriptive, since ranks depend on the other methods.

Friedman's test and Nemenyi's critical difference (Demsar 2006) take tasks as the only replicate
and methods as exchangeable; near-clones break that (measured size 9 % at 5 %). So: one declared
representative per family, at most ten, and no verdict. Rank 1 is the best.

M: method, T: task, S: seed, G: image, R: resample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Real
from scipy.special import chdtrc

from fusionbench.stats.estimate import finite
from fusionbench.stats.groups import TaskScores, by_group, refuse_unequal_seeds

FAR_IN_MADS = 5


def performance_profile(
    scores: Real[np.ndarray, "run task"], thresholds: Real[np.ndarray, " threshold"]
) -> Float[np.ndarray, " threshold"]:
    """Share of all (run, task) scores above each threshold (Agarwal et al. 2021)."""
    ordered = np.sort(finite("scores", scores), axis=None)
    above = ordered.size - np.searchsorted(ordered, finite("thresholds", thresholds), side="right")
    return above / ordered.size


def outlying_seeds(
    seed_scores: Real[np.ndarray, "*batch seed"], *, step: float = 0.0
) -> Bool[np.ndarray, "*batch seed"]:
    """Runs more than 5 MAD from the median, which distort every mean-based interval.

    MAD is the plain median absolute deviation. The flag is a hint: normal runs raise it
    in 22 of 100 sets of 5 seeds and in 14 of 100 sets of 10.

    `step` is the smallest change a score can make (1 / items); MAD is never taken as less, or one
    answer would flag a run where most runs agree.
    """
    values = finite("seed scores", seed_scores)
    distance = np.abs(values - np.median(values, axis=-1, keepdims=True))
    mad = np.maximum(np.median(distance, axis=-1, keepdims=True), step)
    return np.asarray(distance > FAR_IN_MADS * mad)


MOST_REPRESENTATIVES = 10


@dataclass(frozen=True, kw_only=True)
class RankTable:
    """Average ranks with Friedman's test; `critical_share` is the difference over its range.

    At a share near one half, ranks cannot separate anything but the ends.
    """

    average: Float[np.ndarray, " method"]
    statistic: float
    p_value: float
    critical_difference: float
    critical_share: float


def rank_table(scores: Real[np.ndarray, "method task"], *, alpha: float = 0.05) -> RankTable:
    """Ranks of declared representatives. ValueError above `MOST_REPRESENTATIVES` methods."""
    methods, tasks = np.shape(scores)
    if methods > MOST_REPRESENTATIVES:
        raise ValueError(
            f"ranks are shown for at most {MOST_REPRESENTATIVES} methods, one per family, "
            f"got {methods}"
        )
    statistic, p_value = friedman(scores)
    difference = critical_difference(methods, tasks, alpha=alpha)
    return RankTable(
        average=average_ranks(scores),
        statistic=statistic,
        p_value=p_value,
        critical_difference=difference,
        critical_share=difference / (methods - 1),
    )


def average_ranks(scores: Real[np.ndarray, "*batch method task"]) -> Float[np.ndarray, "..."]:
    """Mean rank of each method over tasks; equal scores share their ranks."""
    # scipy.stats takes longer to load than everything else that reads records, and is rarely asked.
    from scipy.stats import rankdata

    return np.asarray(rankdata(-finite("scores", scores), axis=-2).mean(axis=-1))


def friedman(scores: Real[np.ndarray, "method task"]) -> tuple[float, float]:
    """Friedman's chi-square with correction for ties, and its p-value."""
    methods, tasks = np.shape(scores)
    if methods < 3 or tasks < 2:
        raise ValueError(f"Friedman needs 3 methods and 2 tasks, got {methods} and {tasks}")
    from scipy.stats import rankdata

    ranks_MT = rankdata(finite("scores", scores), axis=0)
    middle = (methods + 1) / 2
    within = ((ranks_MT - middle) ** 2).sum()
    if within == 0:
        return 0.0, 1.0
    between = ((ranks_MT.sum(axis=1) - tasks * middle) ** 2).sum()
    statistic = float((methods - 1) * between / within)
    return statistic, float(chdtrc(methods - 1, statistic))


def critical_difference(methods: int, tasks: int, *, alpha: float = 0.05) -> float:
    """Nemenyi: how far two average ranks must lie apart, all pairs at once."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * tasks)))


def rank_intervals(
    tasks: Sequence[TaskScores],
    seed_scope: Literal["task", "suite"],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Float[np.ndarray, " method"], Float[np.ndarray, " method"]]:
    """Percentiles of average ranks over resampled runs and images; tasks are fixed.

    `values` are (method, seed, item). All methods see the same draws; where one run serves the
    suite, all tasks do too. A percentile band: descriptive, not a confidence interval.
    """
    if seed_scope == "suite":
        refuse_unequal_seeds(tasks)
    runs_RS = _draws(rng, resamples, np.shape(tasks[0].values)[-2])
    means = []
    for task in tasks:
        if seed_scope == "task":
            runs_RS = _draws(rng, resamples, np.shape(task.values)[-2])
        means.append(_resampled_means(task, runs_RS, rng))
    ranks_RM = average_ranks(np.stack(means, axis=-1))
    tail = (1 - level) / 2
    low, high = np.quantile(ranks_RM, [tail, 1 - tail], axis=0)
    return low, high


def _resampled_means(
    task: TaskScores, runs_RS: Float[np.ndarray, "resample seed"], rng: np.random.Generator
) -> Float[np.ndarray, "resample method"]:
    table_MSG = by_group(task.values, task.groups)
    images_RG = _draws(rng, len(runs_RS), table_MSG.shape[-1])
    # One product of many rows: three quarters of the time of one for each method.
    flat = table_MSG.reshape(-1, table_MSG.shape[-1])
    per_run_MSR = (flat @ images_RG.T).reshape(*table_MSG.shape[:2], -1)
    means = np.einsum("msr,rs->rm", per_run_MSR, runs_RS)
    # Without this, equal scores would differ in their last bits and not share their ranks.
    return np.round(means, 12)


def _draws(
    rng: np.random.Generator, resamples: int, units: int
) -> Float[np.ndarray, "resample unit"]:
    """Share of each unit in a draw of `units` with replacement."""
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples) / units
