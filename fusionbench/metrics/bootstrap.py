"""Paired bootstrap over images for measures that are no mean over questions (F1, acc+).

One draw takes as many images as there are, with replacement, and all questions about each; both
methods, and all seeds, get the same images (Efron and Tibshirani, 1993, chapter 13). The interval
describes the images and takes the trained runs as given.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from fusionbench.api.benchmarks import Tallied
from fusionbench.api.errors import UserError

DRAWS = 2000
_AT_ONCE = 100
"""Draws whose weights are in memory together."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second method, None where it is undefined on the images as they are."""

    estimate: float | None
    low: float | None
    high: float | None
    """Percentile interval."""
    p: float | None
    """Two-sided: twice the smaller share of draws on one side of zero, (k + 1) / (n + 1)."""
    draws: int
    """Draws in which the difference is defined."""
    images: int


def paired(
    first: Sequence[Tallied],
    second: Sequence[Tallied],
    groups: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Difference]:
    """Difference of each reading, averaged over the runs, which are paired in order.

    `groups` names the image of each answer. Raises UserError if runs, answers or groups do not
    fit each other, or without two images.
    """
    _refuse_unequal("runs", len(first), len(second))
    members = _members(groups)
    runs = [(_by_image(a, members, groups), _by_image(b, members, groups))
            for a, b in zip(first, second, strict=True)]  # fmt: skip

    def differences(
        weights: Int[np.ndarray, "draw image"],
    ) -> dict[str, Float[np.ndarray, " draw"]]:
        each = [
            _subtracted(a.readings(weights @ x), b.readings(weights @ y))
            for (x, y), a, b in zip(runs, first, second, strict=True)
        ]
        return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}

    return _judged(differences, len(members), draws, seed, level)


def weights(images: int, draws: int, seed: int) -> Iterator[Int[np.ndarray, "draw image"]]:
    """How often each image is drawn, in blocks of draws; a function of its arguments alone."""
    random = np.random.default_rng(seed)
    for start in range(0, draws, _AT_ONCE):
        yield random.multinomial(
            images, np.full(images, 1 / images), size=min(_AT_ONCE, draws - start)
        )


def _judged(
    differences: Callable[[Int[np.ndarray, "draw image"]], dict[str, Float[np.ndarray, " draw"]]],
    images: int,
    draws: int,
    seed: int,
    level: float,
) -> dict[str, Difference]:
    if images < 2:
        raise UserError(f"a bootstrap over {images} image(s)", "it needs at least two")
    as_it_is = differences(np.ones((1, images), dtype=np.int64))
    blocks = [differences(block) for block in weights(images, draws, seed)]
    return {
        name: _difference(
            float(value[0]),
            np.concatenate([block[name] for block in blocks]),
            images,
            level,
        )
        for name, value in as_it_is.items()
    }


def _difference(
    estimate: float, drawn: Float[np.ndarray, " draw"], images: int, level: float
) -> Difference:
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(estimate) or not len(known):
        return Difference(
            estimate=None, low=None, high=None, p=None, draws=len(known), images=images
        )
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    side = min((known <= 0).sum(), (known >= 0).sum())
    return Difference(
        estimate=estimate,
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * float(side + 1) / (len(known) + 1)),
        draws=len(known),
        images=images,
    )


def _members(groups: Sequence[str]) -> dict[str, list[int]]:
    """Image -> indices of its answers, images in order of their first answer."""
    found: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return found


def _by_image(
    tally: Tallied, members: Mapping[str, list[int]], groups: Sequence[str]
) -> Float[np.ndarray, "image count"]:
    """Counts of each image."""
    _refuse_unequal("answers and groups", len(tally.counts), len(groups))
    return np.stack([tally.counts[indices].sum(axis=0) for indices in members.values()])


def _subtracted(
    first: Mapping[str, Float[np.ndarray, "*draw"]],
    second: Mapping[str, Float[np.ndarray, "*draw"]],
) -> dict[str, Float[np.ndarray, "*draw"]]:
    return {name: value - second[name] for name, value in first.items() if name in second}


def _refuse_unequal(what: str, first: int, second: int) -> None:
    if first != second:
        raise UserError(f"paired bootstrap: {first} and {second} {what}", "they must be as many")
