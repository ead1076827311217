"""Fractional factorials: 5 to 8 switches in 16 cells, and which effects cannot be told apart.

The generators of Box, Hunter and Hunter (Statistics for Experimenters, table 12.15): with 5
switches every main effect and every two-way interaction stands alone among effects of order 1 and
2 (resolution V); with 6 to 8 the main effects do, and two-way interactions come in sums of 2 to 4
(resolution IV). All switches on is always a cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from jaxtyping import Bool, Float

from fusionbench.stats.ablation import MOST_SWITCHES, Effect

# Each further switch is the product of these, counted from 0 among the first four.
_GENERATORS: Mapping[int, tuple[tuple[int, ...], ...]] = {
    5: ((0, 1, 2, 3),),
    6: ((0, 1, 2), (1, 2, 3)),
    7: ((0, 1, 2), (1, 2, 3), (0, 2, 3)),
    8: ((0, 1, 2), (1, 2, 3), (0, 2, 3), (0, 1, 3)),
}
LARGEST = max(_GENERATORS)


@dataclass(frozen=True, kw_only=True)
class AliasedEffect:
    """An effect, and the two-way interactions whose sum it really is (itself included)."""

    effect: Effect
    sum_of: tuple[tuple[str, ...], ...]


def fraction(switches: int) -> list[tuple[bool, ...]]:
    """The 16 cells for 5 to 8 switches, all of them on first. ValueError for another number."""
    if switches not in _GENERATORS:
        raise ValueError(
            f"a fraction is for {MOST_SWITCHES + 1} to {LARGEST} switches, got {switches}"
        )
    cells = []
    for signs in product((1, -1), repeat=MOST_SWITCHES):
        more = [int(np.prod([signs[i] for i in made_of])) for made_of in _GENERATORS[switches]]
        cells.append(tuple(sign > 0 for sign in (*signs, *more)))
    return cells


def fractional_effects(
    switches: Sequence[str], on: Bool[np.ndarray, "cell switch"]
) -> tuple[AliasedEffect, ...]:
    """Main effects, then two-way interactions, those with one and the same contrast together.

    Three-way and higher interactions are taken to be zero, as a fraction must. ValueError unless
    the cells are a fraction: equally many on and off, and no main effect in another's contrast.
    """
    signs = np.where(np.asarray(on, dtype=np.bool_), 1.0, -1.0)
    cells = len(signs)
    main = [_effect((name,), signs[:, column], cells // 2) for column, name in enumerate(switches)]
    pairs: dict[bytes, list[tuple[int, int]]] = {}
    for one, two in combinations(range(len(switches)), 2):
        pairs.setdefault((signs[:, one] * signs[:, two]).tobytes(), []).append((one, two))
    two_way = []
    for group in pairs.values():
        names = tuple((switches[one], switches[two]) for one, two in group)
        contrast = signs[:, group[0][0]] * signs[:, group[0][1]]
        two_way.append(AliasedEffect(effect=_effect(names[0], contrast, cells // 4), sum_of=names))
    columns = np.array([effect.weights for effect in (*main, *(one.effect for one in two_way))])
    if not np.allclose(columns @ columns.T, np.diag((columns**2).sum(axis=1))):
        raise ValueError("these cells are no fraction: their effects are mixed up")
    return (*(AliasedEffect(effect=effect, sum_of=(effect.switches,)) for effect in main), *two_way)


def _effect(names: tuple[str, ...], contrast: Float[np.ndarray, " cell"], contexts: int) -> Effect:
    """Mean where the product of the switches is on minus mean where it is off.

    For a pair that is half the difference of its simple effects, as in a full design.
    """
    return Effect(switches=names, weights=contrast / (len(contrast) / 2), contexts=contexts)
