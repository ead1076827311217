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
from jaxtyping import Bool, Float, Real

from fusionbench.stats.estimate import finite
from fusionbench.stats.verdicts import holm

# Ablations as factorial experiments: what a switch does on average, and whether two interact.
#
# Every effect is a contrast of cells within one (seed, item), so it has its own error: the crossed
# t on D[s, i] = sum_c weight_c y[c, s, i]. An error pooled over effects calls an unstable switch
# "significant" in 31 to 37 % of null experiments.
#
# A cell is one setting of all switches. Full 2^k designs give weights of +-1 / 2^(k-1). Where a
# combination is void (feedback without a memory), an effect is the mean over the settings of the
# other switches in which all its cells exist.


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
    """Main effects, then two-way, and so on; an effect that void cells make unknowable is left out.

    ValueError for more than 4 switches, a wrong table, or a cell that comes twice.
    """
    rows = _settings(switches, on)
    found = []
    for order in range(1, len(switches) + 1):
        for chosen in combinations(range(len(switches)), order):
            effect = _effect_of(switches, rows, chosen, {})
            found += [effect] if effect.contexts else []
    return tuple(found)


def simple_effect(
    switches: Sequence[str],
    on: Bool[np.ndarray, "cell switch"],
    *,
    of: str,
    given: Mapping[str, bool],
) -> Effect:
    """The effect of one switch at fixed others, to print beside an interaction.

    With all others given it is a one-change variant: a simple effect, not a main effect.
    ValueError where no two cells allow it.
    """
    rows = _settings(switches, on)
    fixed = {list(switches).index(name): state for name, state in given.items()}
    effect = _effect_of(switches, rows, (list(switches).index(of),), fixed)
    if not effect.contexts:
        raise ValueError(f"no two cells differ in {of!r} alone where {dict(given)}")
    return effect


def effect_differences(
    effect: Effect, scores: Real[np.ndarray, "cell seed item"]
) -> Float[np.ndarray, "seed item"]:
    """D[s, i] of one effect, for `crossed.compare` or, per task, for the suite."""
    table = finite("scores", scores)
    if len(table) != len(effect.weights):
        raise ValueError(f"needs {len(effect.weights)} cells, got {len(table)}")
    return np.asarray(np.einsum("c,csi->si", effect.weights, table))


def adjust_within_order(
    effects: Sequence[Effect], p_values: Real[np.ndarray, " effect"]
) -> list[float | None]:
    """Holm among main effects and, apart, among two-way ones; higher orders are only plotted."""
    p = finite("p-values", p_values)
    adjusted: list[float | None] = [None] * len(effects)
    for order in (1, 2):
        family = [index for index, effect in enumerate(effects) if effect.order == order]
        for index, value in zip(family, holm(p[family]), strict=True):
            adjusted[index] = float(value)
    return adjusted


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
    fixed: Mapping[int, bool],
) -> Effect:
    weights, contexts = np.zeros(len(rows)), 0
    others = [index for index in range(len(switches)) if index not in chosen]
    for states in product((False, True), repeat=len(others)):
        context = dict(zip(others, states, strict=True))
        if any(context.get(index, state) != state for index, state in fixed.items()):
            continue
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
    """The cells of an effect in one context with their signs; None if one of them is void."""
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
