"""The crossed t: its pseudo-items, its guard, and what must not change it."""

import numpy as np
import pytest
from nullsuites import SCENARIOS, differences, two_methods

from fusionbench.stats.crossed import compare, crossed_t, guard, satterthwaite, two_way


def some_differences(seeds=5, items=40, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, size=(seeds, items)).astype(float)


def numbers(parts):
    estimate = crossed_t(parts)
    return [float(x) for x in (estimate.value, estimate.variance, estimate.nu)]


def test_the_guard_is_the_upper_80_percent_limit_of_a_variance():
    assert guard(5) == pytest.approx(2.43, abs=0.005)
    assert guard(10) == pytest.approx(1.67, abs=0.005)


def test_the_guard_lowers_nu_and_leaves_value_and_variance():
    parts = two_way(
        differences(SCENARIOS["typ"], np.random.default_rng(1), reps=50, seeds=5, items=300)
    )
    guarded, plain = crossed_t(parts), satterthwaite(parts, 1.0)
    assert np.array_equal(guarded.variance, plain.variance)
    assert np.array_equal(guarded.value, plain.value)
    assert (guarded.nu < plain.nu + 1e-9).mean() > 0.9


def test_the_variance_is_never_below_that_of_seeds_or_of_items_alone():
    parts = two_way(np.random.default_rng(2).normal(size=(200, 4, 6)))
    assert (parts.variance >= parts.seed).all()
    assert (parts.variance >= parts.item).all()
    assert (crossed_t(parts).nu >= 3).all()


@pytest.mark.parametrize("size", [1.0, 0.25])
def test_pseudo_items_are_two_more_columns_of_the_table(size):
    from fusionbench.stats.crossed import with_pseudo_items

    d = some_differences()
    d[:, 6:] = 0
    longer = two_way(np.hstack([d, np.full((5, 1), size), np.full((5, 1), -size)]))
    closed = with_pseudo_items(two_way(d), np.asarray(True), size=size)
    for name in ("seed", "item", "both", "items"):
        assert float(getattr(closed, name)) == pytest.approx(
            float(getattr(longer, name)), rel=1e-12
        )
    assert float(closed.value) == pytest.approx(float(d.mean()), rel=1e-12)


def test_pseudo_items_come_below_ten_discordant_items_and_not_at_ten():
    for count, extra in ((9, 2), (10, 0)):
        d = np.zeros((5, 100))
        d[0, :count] = 1
        parts = compare(d)
        assert int(parts.discordant) == count
        assert float(parts.items) == 100 + extra
        assert bool(parts.few_discordant) == bool(extra)


def test_no_difference_at_all_gives_a_rule_of_three_and_p_one():
    estimate = crossed_t(compare(np.zeros((5, 300))))
    low, high = estimate.interval()
    assert float(estimate.value) == 0
    assert float(estimate.p_value()) == 1
    assert float(high) == -float(low) == pytest.approx(2.8 / 300, rel=0.02)


def test_swapping_method_and_reference_negates_the_difference_and_keeps_p():
    d = some_differences() + (np.arange(40) < 4)
    there, back = crossed_t(compare(d)), crossed_t(compare(-d))
    assert float(there.value) == -float(back.value) != 0
    assert float(there.p_value()) == float(back.p_value())
    assert float(there.p_equivalent(0.2)) == float(back.p_equivalent(0.2))
    assert float(there.mde()) == float(back.mde())


def test_a_method_more_in_the_table_changes_nothing_for_the_others():
    y = two_methods(SCENARIOS["typ"], np.random.default_rng(3), reps=8, seeds=5, items=200)
    table = y[:, 1].astype(float) - y[:, 0]
    few, more = crossed_t(compare(table[:5])), crossed_t(compare(table))
    for name in ("value", "variance", "nu"):
        assert np.array_equal(getattr(few, name), getattr(more, name)[:5])
    assert np.array_equal(few.p_value(), more.p_value()[:5])


def test_the_order_of_seeds_and_items_does_not_matter():
    d, rng = some_differences(), np.random.default_rng(4)
    shuffled = d[rng.permutation(5)][:, rng.permutation(40)]
    assert numbers(compare(shuffled)) == pytest.approx(numbers(compare(d)), rel=1e-12)


def test_duplicating_every_item_as_a_group_changes_nothing():
    d = some_differences()
    groups = np.tile(np.arange(40), 3)
    assert numbers(compare(np.tile(d, 3), groups)) == pytest.approx(numbers(compare(d)), rel=1e-10)
    few = d * (np.arange(40) < 5)
    grouped, single = compare(np.tile(few, 3), groups), compare(few)
    assert int(grouped.discordant) == int(single.discordant) <= 5
    assert numbers(grouped) == pytest.approx(numbers(single), rel=1e-10)


def test_groups_of_one_change_nothing():
    d = some_differences()
    names = np.array([f"image {index:03d}" for index in range(40)])
    assert numbers(compare(d, names)) == pytest.approx(numbers(compare(d)), rel=1e-12)


def test_the_global_random_state_is_neither_read_nor_moved():
    d = some_differences()
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = numbers(compare(d))
    np.random.seed(1)  # noqa: NPY002
    assert numbers(compare(d)) == first
    np.random.set_state(("MT19937", before, 624, 0, 0.0))  # noqa: NPY002


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_refused(bad):
    d = some_differences()
    d[2, 3] = bad
    for groups in (None, np.arange(40)):
        with pytest.raises(ValueError, match="1 of 200 values are NaN or infinite"):
            compare(d, groups)


def test_one_seed_or_one_item_is_refused():
    for shape in ((1, 40), (5, 1)):
        with pytest.raises(ValueError, match="at least 2 seeds and 2 items"):
            compare(np.zeros(shape))
