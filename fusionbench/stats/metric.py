"""Metrics that are not means of outcomes (F1, accuracy per image): values and intervals.

Delete-a-group jackknife: image groups are dealt into K blocks, and the metric is computed without
each block. The pseudo-values K theta - (K - 1) theta(-k) (Tukey 1958; in blocks: Kott 2001, Journal
of Official Statistics 17) behave like outcomes of K independent examples, so the crossed variance
of `stats.crossed` gives an interval for new runs and new images. For a mean over equal blocks they
are the block means.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Float, Int

from fusionbench.stats.cells import CellInterval, crossed_interval
from fusionbench.stats.crossed import two_way

BLOCKS = 50
"""The most blocks: an interval then has at least 49 degrees of freedom for images."""


class Examples(Protocol):
    """Examples in order, with the image group of each."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The image group of each example."""
        ...

    def pick(self, rows: Int[np.ndarray, " picked"]) -> Self:
        """Some of the examples."""
        ...


Items = TypeVar("Items", bound=Examples)


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
