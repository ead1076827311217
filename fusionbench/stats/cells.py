"""The interval of one cell's score, a mean or not; it compares no methods, since pairing is lost.

The crossed variance of `crossed`, then Wilson's interval with the effective number of independent
answers that has this variance: near 0 and 1 a plain t covers only 82 to 91 %.

A metric that is no mean of outcomes (F1, accuracy per image) has a delete-a-group jackknife: image
groups are dealt into K blocks, and the metric is computed without each block. The pseudo-values K
theta - (K - 1) theta(-k) (Tukey 1958; in blocks: Kott 2001, Journal of Official Statistics 17)
behave like outcomes of K independent examples, so the crossed variance of `crossed` gives an
interval for new runs and new images. For a mean over equal blocks they are the block means.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import stdtrit

from fusionbench.stats.crossed import Components, crossed_t, two_way
from fusionbench.stats.estimate import two_way_layout
from fusionbench.stats.groups import by_group


@dataclass(frozen=True, kw_only=True)
class CellInterval:
    """Mean score with its interval; `effective` counts independent answers (continuous: as if)."""

    mean: Float[np.ndarray, "*batch"]
    low: Float[np.ndarray, "*batch"]
    high: Float[np.ndarray, "*batch"]
    effective: Float[np.ndarray, "*batch"]


def share_correct(
    outcomes: Shaped[np.ndarray, "*batch seed item"],
    groups: Shaped[np.ndarray, " item"],
    *,
    alpha: float = 0.05,
) -> CellInterval:
    """Wilson's interval for right-or-wrong outcomes, new runs and new images.

    ValueError unless every outcome is 0 or 1, on NaN, and on a single run (no interval exists).
    """
    scores = two_way_layout("outcomes", outcomes)
    if not np.isin(scores, (0.0, 1.0)).all():
        raise ValueError("outcomes must be 0 or 1; use `mean_score` for continuous scores")
    return _cell(two_way(by_group(scores, groups)), scores.shape[-1], alpha)


def mean_score(
    scores: Shaped[np.ndarray, "*batch seed item"],
    groups: Shaped[np.ndarray, " item"],
    *,
    alpha: float = 0.05,
) -> CellInterval:
    """Crossed t for continuous scores in [0, 1]; the interval is cut off there.

    Scores without any variance get Wilson's interval. ValueError
    on NaN or outside [0, 1].
    """
    table = two_way_layout("scores", scores)
    if table.min() < 0 or table.max() > 1:
        raise ValueError(f"scores must lie in [0, 1], got {table.min()} to {table.max()}")
    return crossed_interval(two_way(by_group(table, groups)), table.shape[-1], alpha)


def crossed_interval(parts: Components, items: int, alpha: float = 0.05) -> CellInterval:
    """Crossed t cut off at 0 and 1; Wilson's interval of `items` answers for values that agree."""
    cell = _cell(parts, items, alpha)
    low, high = crossed_t(parts).interval(alpha)
    varies = ~_constant(parts)
    return CellInterval(
        mean=cell.mean,
        low=np.where(varies, np.clip(low, 0, 1), cell.low),
        high=np.where(varies, np.clip(high, 0, 1), cell.high),
        effective=cell.effective,
    )


def wilson(
    mean: Float[np.ndarray, "*batch"],
    effective: Float[np.ndarray, "*batch"],
    quantile: Float[np.ndarray, "*batch"],
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Wilson's interval (1927) of a share of `effective` answers; stays inside [0, 1]."""
    z2 = quantile**2
    centre = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    root = np.sqrt(z2 * (mean * (1 - mean) / effective + z2 / (4 * effective**2)))
    half = root / (1 + z2 / effective)
    # At 0 and 1 the ends meet the mean but for rounding.
    low, high = np.minimum(centre - half, mean), np.maximum(centre + half, mean)
    return np.asarray(np.clip(low, 0, 1)), np.asarray(np.clip(high, 0, 1))


def _cell(parts: Components, items: int, alpha: float) -> CellInterval:
    constant = _constant(parts)
    mean = np.asarray(np.clip(parts.value, 0, 1))
    most = np.full(mean.shape, float(parts.seeds * items))
    worth = np.divide(mean * (1 - mean), parts.variance, out=most.copy(), where=~constant)
    effective = np.where(constant, parts.items, np.minimum(worth, most))
    # Without any variance nu is 0/0; the number of images then limits the precision.
    nu = np.where(constant, parts.items - 1, crossed_t(parts).nu)
    low, high = wilson(mean, effective, np.asarray(stdtrit(nu, 1 - alpha / 2)))
    return CellInterval(mean=mean, low=low, high=high, effective=effective)


def _constant(parts: Components) -> Bool[np.ndarray, "*batch"]:
    """Whether all scores are equal, up to the rounding of their mean."""
    return np.asarray(parts.variance <= np.finfo(np.float64).eps ** 2)


BLOCKS = 50
"""The most blocks: an interval then has at least 49 degrees of freedom for images."""


class GroupedExamples(Protocol):
    """Examples in order, with the image group of each."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The image group of each example."""
        ...

    def pick(self, rows: Int[np.ndarray, " picked"]) -> Self:
        """Some of the examples."""
        ...


Items = TypeVar("Items", bound=GroupedExamples)


def named_metrics(
    metrics: Callable[[Float[np.ndarray, " example"], Items], Mapping[str, float]],
    outcomes: Float[np.ndarray, " example"],
    items: Items,
    headline: str,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The value of each metric, and its values without each block.

    The headline metric is the mean outcome and needs no second part. Raises ValueError for a value
    that is not between 0 and 1.
    """
    values = _checked(metrics(outcomes, items))
    names = [name for name in values if name != headline]
    block = blocks(items.groups)
    if not names or not block.any():
        return values, {}
    parts = []
    for left in range(block.max() + 1):
        rows = np.flatnonzero(block != left)
        parts.append(_checked(metrics(outcomes[rows], items.pick(rows))))
    return values, {name: [part[name] for part in parts] for name in names}


def blocks(groups: Sequence[str]) -> Int[np.ndarray, " example"]:
    """Block of each example, 0 to K - 1: complete image groups, dealt out in a drawn order.

    The order depends on the number of groups alone, so that all cells of a task share the blocks.
    """
    number: dict[str, int] = {}
    group = np.array([number.setdefault(name, len(number)) for name in groups])
    order = np.random.default_rng(0).permutation(len(number))
    return np.asarray((order % min(BLOCKS, len(number)))[group])


def metric_interval(
    values: Float[np.ndarray, " seed"], left_out: Float[np.ndarray, "seed block"]
) -> CellInterval:
    """Mean over seeds of a metric with its 95 % interval for new runs and new images.

    ValueError on NaN or on fewer than two seeds or blocks.
    """
    count = left_out.shape[1]
    pseudo = count * values[:, None] - (count - 1) * left_out
    # The mean of pseudo-values is the jackknife's estimate; the metric itself is what is reported.
    return crossed_interval(replace(two_way(pseudo), value=np.asarray(values.mean())), count)


def _checked(values: Mapping[str, float]) -> dict[str, float]:
    found = {name: float(value) for name, value in values.items()}
    for name, value in found.items():
        if not 0 <= value <= 1:
            raise ValueError(f"metric {name} must be between 0 and 1, got {value:g}")
    return found
