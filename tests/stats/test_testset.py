"""The second column: sign flips, their smallest p, and families that flip together."""

import numpy as np
import pytest

from fusionbench.stats.crossed import sign_patterns, smallest_p, step_down_max_t, t_over_seeds


def test_five_seeds_can_never_reach_five_percent_and_six_can_in_any_family():
    assert smallest_p(5) == 2 / 32
    assert smallest_p(5) > 0.05 > smallest_p(6)
    clear = np.tile(np.linspace(0.9, 1.1, 6), (44, 1))
    assert step_down_max_t(clear).p_value == pytest.approx(np.full(44, 2 / 64))
    alone = step_down_max_t(np.ones((1, 5)))
    assert float(alone.p_value[0]) == alone.smallest_p


def test_listed_patterns_are_all_distinct_and_drawn_ones_begin_with_the_data():
    assert len(np.unique(sign_patterns(8), axis=0)) == 2**7
    drawn = sign_patterns(15)
    assert (drawn[0] == 1).all()
    assert np.array_equal(drawn, sign_patterns.__wrapped__(15))


def test_adjusted_p_values_are_those_of_the_step_down_definition():
    values = np.random.default_rng(1).normal(0.6, 1, size=(4, 7))
    patterns = 1.0 - 2.0 * (np.arange(128)[:, None] >> np.arange(7) & 1)

    def t(table):
        return np.abs(table.mean(-1) / np.sqrt(table.var(-1, ddof=1) / 7))

    observed, order = t(values), np.argsort(-t(values))
    flipped = np.stack([t(values * signs) for signs in patterns])
    expected, running = np.zeros(4), 0.0
    for position, row in enumerate(order):
        largest = flipped[:, order[position:]].max(axis=1)
        running = max(running, (largest >= observed[row] - 1e-9).mean())
        expected[row] = running
    assert step_down_max_t(values).p_value == pytest.approx(expected)


def test_a_clone_in_the_family_costs_nothing():
    values = np.random.default_rng(2).normal(0.6, 1, size=(3, 8))
    alone, doubled = step_down_max_t(values), step_down_max_t(np.vstack([values, values]))
    assert doubled.p_value[:3] == pytest.approx(alone.p_value)


def test_sign_flips_are_symmetric_and_zero_is_never_significant():
    values = np.random.default_rng(3).normal(0.3, 1, size=(3, 13))
    values[1] = 0
    assert np.array_equal(step_down_max_t(values).p_value, step_down_max_t(-values).p_value)
    assert float(step_down_max_t(values).p_value[1]) == 1


def test_more_than_twelve_seeds_draw_flips_from_the_stated_key_alone():
    values = np.random.default_rng(4).normal(0.3, 1, size=(2, 16))
    first = step_down_max_t(values).p_value
    sign_patterns.cache_clear()
    assert np.array_equal(step_down_max_t(values).p_value, first)
    assert smallest_p(16) == 1 / 10_001


def test_nan_and_single_seeds_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        step_down_max_t(np.array([[0.1, np.nan, 0.2]]))
    with pytest.raises(ValueError, match="at least 2 seeds"):
        t_over_seeds(np.array([0.1]))
