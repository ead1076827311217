"""Factorial ablations: weights over cells for main effects and interactions.

A cell is one setting of all switches. Every effect is a contrast of cells within one (seed, item)
with its own error: the crossed t on D[s, i] = sum_c weight_c y[c, s, i]. An error pooled over
effects calls an unstable switch "significant" in 31 to 37 % of null experiments.

Full 2^k designs give weights of +-1 / 2^(k-1). Where a combination is skipped (feedback without a
memory), an effect is the mean over the settings of the other switches in which all its cells exist.

Fractions hold 5 to 8 switches in 16 cells, with the generators of Box, Hunter and Hunter
(Statistics for Experimenters, table 12.15). With 5 switches no main effect or two-way interaction
is aliased with another (resolution V); with 6 to 8, two-way interactions are aliased in sums of 2
to 4 (resolution IV). All switches on is always a cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from jaxtyping import Bool, Float

MOST_SWITCHES = 4


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A main effect (one switch: on minus off) or an interaction (half the difference of effects).

    `contexts` counts the settings of the other switches over which it is averaged.
    """

    switches: tuple[str, ...]
    weights: Float[np.ndarray, " cell"]
    contexts: int

    @property
    def order(self) -> int:
        return len(self.switches)


def factorial_effects(
    switches: Sequence[str], on: Bool[np.ndarray, "cell switch"]
) -> tuple[Effect, ...]:
    """Main effects, then two-way, and so on; omits effects that skipped cells make unknowable.

    ValueError for more than 4 switches, a wrong table, or a cell that comes twice.
    """
    rows = _settings(switches, on)
    found = []
    for order in range(1, len(switches) + 1):
        for chosen in combinations(range(len(switches)), order):
            effect = _effect_of(switches, rows, chosen)
            found += [effect] if effect.contexts else []
    return tuple(found)


def _settings(
    switches: Sequence[str], on: Bool[np.ndarray, "cell switch"]
) -> dict[tuple[bool, ...], int]:
    table = np.asarray(on, dtype=np.bool_)
    if not 1 <= len(switches) <= MOST_SWITCHES:
        raise ValueError(f"1 to {MOST_SWITCHES} switches can be combined, got {len(switches)}")
    if table.ndim != 2 or table.shape[1] != len(switches):
        raise ValueError(f"needs one column per switch {list(switches)}, got {table.shape}")
    rows = {tuple(map(bool, row)): index for index, row in enumerate(table.tolist())}
    if len(rows) != len(table):
        raise ValueError("a combination of switches comes twice")
    return rows


def _effect_of(
    switches: Sequence[str],
    rows: Mapping[tuple[bool, ...], int],
    chosen: tuple[int, ...],
) -> Effect:
    weights, contexts = np.zeros(len(rows)), 0
    others = [index for index in range(len(switches)) if index not in chosen]
    for states in product((False, True), repeat=len(others)):
        context = dict(zip(others, states, strict=True))
        cells = _cells_of(rows, chosen, context)
        if cells is not None:
            contexts += 1
            for cell, sign in cells:
                weights[cell] += sign / 2 ** (len(chosen) - 1)
    names = tuple(switches[index] for index in chosen)
    return Effect(switches=names, weights=weights / max(contexts, 1), contexts=contexts)


def _cells_of(
    rows: Mapping[tuple[bool, ...], int], chosen: tuple[int, ...], context: Mapping[int, bool]
) -> list[tuple[int, int]] | None:
    """The cells of an effect in one context with their signs; None if one was skipped."""
    cells = []
    for states in product((False, True), repeat=len(chosen)):
        setting = {**context, **dict(zip(chosen, states, strict=True))}
        cell = rows.get(tuple(setting[index] for index in sorted(setting)))
        if cell is None:
            return None
        cells.append((cell, 1 if states.count(False) % 2 == 0 else -1))
    return cells


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
