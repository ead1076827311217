"""Fractions of a factorial: 16 cells for 5 to 8 switches, and what they can and cannot tell."""

from itertools import combinations

import numpy as np
import pytest

from fusionbench.stats.crossed import weighted_sum
from fusionbench.stats.factorial import LARGEST, fraction, fractional_effects

NAMES = "ABCDEFGH"


@pytest.mark.parametrize("k", range(5, LARGEST + 1))
def test_a_fraction_has_sixteen_different_balanced_cells_with_the_full_method_first(k):
    cells = fraction(k)
    assert len(set(cells)) == len(cells) == 16
    assert cells[0] == (True,) * k
    assert (np.array(cells).sum(axis=0) == 8).all()


@pytest.mark.parametrize(("k", "alone", "groups"), [(5, 10, 10), (6, 0, 7), (7, 0, 7), (8, 0, 7)])
def test_two_way_interactions_stand_alone_with_five_switches_and_in_sums_beyond(k, alone, groups):
    found = fractional_effects(NAMES[:k], np.array(fraction(k)))
    two_way = [one for one in found if one.effect.order == 2]
    assert len(two_way) == groups
    assert sum(len(one.sum_of) == 1 for one in two_way) == alone
    covered = [pair for one in two_way for pair in one.sum_of]
    assert sorted(covered) == sorted(combinations(NAMES[:k], 2))


@pytest.mark.parametrize("k", [5, 7])
def test_main_effects_are_free_of_every_two_way_interaction(k):
    """A planted interaction shows in its own contrast, or its sum, and nowhere else."""
    on = np.array(fraction(k))
    signs = np.where(on, 1.0, -1.0)
    scores = np.tile((0.5 + 0.02 * signs[:, 0] + 0.05 * signs[:, 1] * signs[:, 3])[:, None, None],
                     (1, 2, 3))  # fmt: skip
    for one in fractional_effects(NAMES[:k], on):
        value = weighted_sum(one.effect.weights, scores).mean()
        expected = 0.04 if one.effect.switches == ("A",) else 0.1 if ("B", "D") in one.sum_of else 0
        assert value == pytest.approx(expected, abs=1e-12), one.effect.switches


def test_five_switches_give_what_the_full_design_gives_where_three_way_effects_are_zero():
    rng = np.random.default_rng(0)
    main, pair = rng.normal(size=5), rng.normal(size=(5, 5))

    def mean(signs):
        two_way = sum(pair[i, j] * signs[i] * signs[j] for i, j in combinations(range(5), 2))
        return float(signs @ main + two_way)

    signs = np.where(np.array(fraction(5)), 1.0, -1.0)
    scores = np.array([mean(row) for row in signs])[:, None, None] * np.ones((1, 2, 2))
    for one in fractional_effects(NAMES[:5], signs > 0):
        index = [NAMES.index(name) for name in one.effect.switches]
        truth = 2 * main[index[0]] if len(index) == 1 else 2 * pair[tuple(index)]
        assert weighted_sum(one.effect.weights, scores).mean() == pytest.approx(truth)


def test_cells_that_are_no_fraction_are_refused():
    cells = np.array(fraction(5))
    with pytest.raises(ValueError, match="mixed up"):
        fractional_effects(NAMES[:5], cells[:-1])
    with pytest.raises(ValueError, match="5 to 8"):
        fraction(4)
