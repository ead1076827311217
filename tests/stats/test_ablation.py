"""Factorial ablations: every effect is a contrast with an error of its own."""

from itertools import combinations, product

import numpy as np
import pytest

from fusionbench.stats.crossed import weighted_sum
from fusionbench.stats.factorial import LARGEST, factorial_effects, fraction, fractional_effects

SWITCHES = ("memory", "feedback", "query")
FULL = np.array(list(product((False, True), repeat=3)))


def test_a_full_design_has_every_effect_with_equal_weights():
    effects = factorial_effects(SWITCHES, FULL)
    assert [effect.order for effect in effects] == [1, 1, 1, 2, 2, 2, 3]
    signs = 2.0 * FULL - 1
    for effect in effects:
        columns = [SWITCHES.index(name) for name in effect.switches]
        assert effect.weights == pytest.approx(signs[:, columns].prod(axis=1) / 4)


def test_effects_recover_what_was_planted():
    memory, feedback, query = FULL.T.astype(float)
    planted = 0.5 + 0.10 * memory + 0.02 * query + 0.08 * memory * feedback
    scores = np.tile(planted[:, None, None], (1, 3, 4))
    found = {
        effect.switches: weighted_sum(effect.weights, scores).mean()
        for effect in factorial_effects(SWITCHES, FULL)
    }
    assert found[("memory",)] == pytest.approx(0.10 + 0.08 / 2)
    assert found[("query",)] == pytest.approx(0.02)
    # Half the difference of the simple effects of memory with and without feedback.
    assert found[("memory", "feedback")] == pytest.approx(0.08 / 2)
    assert found[("memory", "query")] == pytest.approx(0)


def test_skipped_combinations_leave_the_contexts_that_exist():
    cells = FULL[~(~FULL[:, 0] & FULL[:, 1])]  # no feedback without memory
    effects = {effect.switches: effect for effect in factorial_effects(SWITCHES, cells)}
    assert effects[("memory",)].contexts == 2
    assert effects[("feedback",)].contexts == 2
    assert effects[("query",)].contexts == 3
    assert ("memory", "feedback") not in effects
    for effect in effects.values():
        assert effect.weights.sum() == pytest.approx(0)


def test_designs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="1 to 4 switches"):
        factorial_effects(tuple("abcde"), np.zeros((2, 5), dtype=bool))
    with pytest.raises(ValueError, match="comes twice"):
        factorial_effects(SWITCHES, np.vstack([FULL, FULL[:1]]))
    with pytest.raises(ValueError, match="one column per switch"):
        factorial_effects(SWITCHES, FULL[:, :2])
    effect = factorial_effects(SWITCHES, FULL)[0]
    with pytest.raises(ValueError, match="needs 8 rows of scores, got 7"):
        weighted_sum(effect.weights, np.zeros((7, 3, 4)))


# Fractions of a factorial: 16 cells for 5 to 8 switches, and what they can and cannot tell.

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
