"""What the statistics refuse: a number that is not one, a run counted twice.

A missing cell is left out by the caller and printed as "not run"; nothing here averages it away.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Shaped


def finite(name: str, values: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """`values` in double precision; ValueError if any of them is NaN or infinite."""
    numbers = np.asarray(values, dtype=np.float64)
    bad = int(np.count_nonzero(~np.isfinite(numbers)))
    if bad:
        raise ValueError(
            f"{name}: {bad} of {numbers.size} values are NaN or infinite; "
            "leave a missing cell out instead of passing it on"
        )
    return numbers


def two_way_layout(name: str, values: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """`values` as finite doubles whose last two axes are (seed, item), at least 2 x 2.

    One run says nothing about the next one: ValueError. So does an array with NaN.
    """
    numbers = finite(name, values)
    if numbers.ndim < 2 or numbers.shape[-2] < 2 or numbers.shape[-1] < 2:
        raise ValueError(
            f"{name}: needs at least 2 seeds and 2 items on its last two axes, "
            f"got an array of shape {numbers.shape}"
        )
    return numbers


def distinct_ids(name: str, ids: Sequence[Hashable]) -> None:
    """ValueError if an id comes twice: a run counted twice halves its variance for nothing."""
    twice = sorted(str(key) for key, times in Counter(ids).items() if times > 1)
    if twice:
        raise ValueError(f"{name}: every id must come once, these come more often: {twice}")


def identical_runs(scores_SI: Shaped[np.ndarray, "seed item"]) -> list[tuple[int, int]]:
    """Pairs of runs with the same outcome on every item: a seed that changed nothing?

    Near the ceiling two honest runs may agree, so this is shown, not refused.
    """
    seeds = finite("scores", scores_SI)
    pairs = [(one, two) for one in range(len(seeds)) for two in range(one + 1, len(seeds))]
    return [(one, two) for one, two in pairs if np.array_equal(seeds[one], seeds[two])]
