"""Intervals, p-values, equivalence and detectable effects come from one variance and one nu."""

from dataclasses import dataclass

import numpy as np
import pytest
from nullsuites import SCENARIOS, differences, two_methods
from scipy import stats

from fusionbench.api.tasks import ScoredItems
from fusionbench.stats.cells import (
    BLOCKS,
    blocks,
    mean_score,
    metric_interval,
    named_metrics,
    share_correct,
)
from fusionbench.stats.crossed import compare, crossed_t, guard, satterthwaite, two_way
from fusionbench.stats.estimate import Estimate, stack


def an_estimate(value=0.02, se=0.01, nu=8.0, replicates=5):
    return Estimate(
        value=np.asarray(value),
        variance=np.asarray(se**2),
        nu=np.asarray(nu),
        replicates=replicates,
    )


def test_p_is_below_alpha_exactly_when_the_interval_leaves_zero_out():
    for value in np.linspace(-0.05, 0.05, 41):
        estimate = an_estimate(value)
        low, high = estimate.interval()
        assert (float(estimate.p_value()) < 0.05) == (low > 0 or high < 0)


def test_equivalence_is_the_90_percent_interval_inside_the_margin():
    for value in np.linspace(-0.05, 0.05, 41):
        estimate = an_estimate(value)
        low, high = estimate.interval(0.10)
        inside = bool(low > -0.04 and high < 0.04)
        assert (float(estimate.p_equivalent(0.04)) < 0.05) == inside


def test_the_detectable_effect_ignores_the_value():
    assert float(an_estimate(0.0).mde()) == float(an_estimate(0.9).mde())
    assert float(an_estimate().mde(0.05 / 11)) > float(an_estimate().mde())


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 11, 0.05 / 990])
@pytest.mark.parametrize("nu", [3.0, 4.0, 9.0, 30.0, 1e3, 1e6])
def test_the_detectable_effect_has_the_power_it_promises(nu, alpha):
    estimate = an_estimate(se=1.0, nu=nu)
    effect = float(estimate.mde(alpha))
    critical = float(estimate.quantile(1 - alpha / 2))
    assert stats.nct.sf(critical, nu, effect) == pytest.approx(0.80, abs=1e-6)
    if nu >= 30 and alpha == 0.05:
        assert effect == pytest.approx(critical + float(estimate.quantile(0.80)), rel=1e-3)


def test_no_variance_decides_everything_but_zero():
    assert float(an_estimate(0.0, se=0.0).p_value()) == 1
    assert float(an_estimate(0.1, se=0.0).p_value()) == 0
    assert float(an_estimate(0.0, se=0.0).p_equivalent(0.01)) == 0


def test_three_replicates_have_an_interval_and_no_test():
    estimate = an_estimate(replicates=3)
    assert np.isfinite(estimate.interval()).all()
    assert not estimate.testable
    for test in (estimate.p_value, lambda: estimate.p_equivalent(0.01)):
        with pytest.raises(ValueError, match="no test on 3 replicates"):
            test()


def test_a_margin_must_be_positive():
    with pytest.raises(ValueError, match="margin must be positive"):
        an_estimate().p_equivalent(0.0)


def test_estimates_stack_and_come_apart_again():
    table = stack([an_estimate(0.01), an_estimate(0.03, nu=4.0, replicates=4)])
    assert table.value.tolist() == [0.01, 0.03]
    assert table.replicates == 4
    assert float(table[1].p_value()) == float(an_estimate(0.03, nu=4.0).p_value())
    with pytest.raises(ValueError, match="nothing to stack"):
        stack([])


# The crossed t: its pseudo-items, its guard, and what must not change it.


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
    assert (two_way(np.array([[0.0, 1.0], [1.0, 0.0]])).seeds, compare(np.eye(2)).seeds) == (2, 2)


# The interval of a single score.


def outcomes(reps=20, items=200):
    y = two_methods(SCENARIOS["typ"], np.random.default_rng(0), reps=reps, seeds=5, items=items)
    return y[:, 0]


def test_a_cell_is_worth_at_most_all_its_answers_and_fewer_than_that():
    cell = share_correct(outcomes(), np.arange(200))
    assert (cell.effective <= 5 * 200).all()
    assert cell.effective.mean() < 5 * 200 / 2
    assert ((cell.low < cell.mean) & (cell.mean < cell.high)).all()


def test_a_perfect_cell_still_has_an_interval():
    for score in (share_correct, mean_score):
        cell = score(np.ones((5, 100)), np.arange(100))
        assert float(cell.mean) == float(cell.high) == 1
        assert float(cell.low) == pytest.approx(100 / 103.94, rel=1e-3)
        assert float(cell.effective) == 100


def test_four_questions_per_image_are_worth_less_than_four_images():
    y = np.repeat(outcomes(items=50), 4, axis=-1)
    by_image = share_correct(y, np.repeat(np.arange(50), 4))
    by_question = share_correct(y, np.arange(200))
    assert by_image.mean == pytest.approx(by_question.mean)
    assert np.median(by_question.effective / by_image.effective) > 1.5


def test_continuous_scores_get_a_crossed_t_inside_zero_and_one():
    scores = np.random.default_rng(1).beta(9, 0.3, size=(30, 4, 12))
    cell = mean_score(scores, np.arange(12))
    assert (cell.low >= 0).all() and (cell.high <= 1).all()
    assert ((cell.low < cell.mean) & (cell.mean <= cell.high)).all()


def test_what_is_not_a_score_is_refused():
    with pytest.raises(ValueError, match="must be 0 or 1"):
        share_correct(np.full((3, 4), 0.5), np.arange(4))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        mean_score(np.full((3, 4), 1.5), np.arange(4))
    with pytest.raises(ValueError, match="NaN"):
        mean_score(np.full((3, 4), np.nan), np.arange(4))
    with pytest.raises(ValueError, match="at least 2 seeds"):
        share_correct(np.ones((1, 4)), np.arange(4))


# Metrics that are no means: blocks, pseudo-values, and how often the interval holds the truth.


@dataclass(frozen=True)
class Plain:
    """Examples with a true label each."""

    groups: tuple[str, ...]
    positive: np.ndarray

    def pick(self, rows):
        return Plain(tuple(self.groups[row] for row in rows), self.positive[rows])


def f1(outcomes, items):
    hit = float((outcomes * items.positive).sum())
    wrong = float((1 - outcomes).sum())
    return {"accuracy": float(outcomes.mean()), "f1": 2 * hit / max(2 * hit + wrong, 1e-9)}


def test_blocks_hold_complete_groups_of_nearly_equal_number():
    groups = [f"image-{number // 3}" for number in range(402)]
    found = blocks(groups)
    assert set(found) == set(range(BLOCKS))
    assert all(len({found[3 * g], found[3 * g + 1], found[3 * g + 2]}) == 1 for g in range(134))
    assert np.ptp(np.bincount(found)) <= 3
    assert len(set(blocks(["a", "b", "a"]))) == 2


def test_the_headline_metric_has_no_second_part_and_others_one_value_a_block():
    rng = np.random.default_rng(0)
    items = Plain(tuple(map(str, range(200))), rng.integers(0, 2, 200))
    values, left_out = named_metrics(f1, rng.integers(0, 2, 200), items, "accuracy")
    assert set(values) == {"accuracy", "f1"} and list(left_out) == ["f1"]
    assert len(left_out["f1"]) == BLOCKS
    assert named_metrics(lambda o, i: {"accuracy": 0.5}, np.ones(9), items, "accuracy")[1] == {}


def test_pseudo_values_of_a_mean_over_equal_blocks_are_the_block_means():
    rng = np.random.default_rng(1)
    outcomes = rng.random((5, 40))
    means = outcomes.reshape(5, 10, 4).mean(axis=-1)
    left_out = (means.sum(axis=1, keepdims=True) - means) / 9
    found = metric_interval(means.mean(axis=1), left_out)
    expected = mean_score(means, np.arange(10))
    assert np.allclose([found.low, found.high], [expected.low, expected.high])


def test_a_metric_that_never_varies_has_an_interval_too():
    found = metric_interval(np.zeros(5), np.zeros((5, BLOCKS)))
    assert found.low == found.mean == 0 and 0.02 < found.high < 0.15


@pytest.mark.parametrize("wrong", [float("nan"), 1.5, -0.1])
def test_a_value_outside_0_to_1_is_refused(wrong):
    items = Plain(("a", "b"), np.ones(2))
    with pytest.raises(ValueError, match="f1 must be between 0 and 1"):
        named_metrics(lambda o, i: {"f1": wrong}, np.ones(2), items, "accuracy")


def test_the_interval_of_an_f1_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    seeds, images, studies = 5, 150, 300

    def study(images):
        positive = rng.random(images) < 0.4
        image = rng.normal(0, 0.8, images)
        run = rng.normal(0, 0.1, (seeds, 1))
        noise = rng.normal(0, 0.6, (seeds, images))
        right = (0.4 + 0.4 * positive + image + run + noise > 0).astype(float)
        return positive, right

    positive, right = study(400_000)
    items = Plain((), positive)
    truth = np.mean([f1(row, items)["f1"] for row in right])
    names = tuple(map(str, range(images)))
    block = blocks(names)
    kept = np.array([block != left for left in range(BLOCKS)]).T.astype(float)
    covered = 0
    for _ in range(studies):
        positive, right = study(images)
        hit, wrong = (right * positive) @ kept, (1 - right) @ kept
        values = np.array([f1(row, Plain(names, positive))["f1"] for row in right])
        found = metric_interval(values, 2 * hit / (2 * hit + wrong))
        covered += bool(found.low <= truth <= found.high)
    # Two standard errors of a share of 0.95 in 300 studies are 0.025.
    assert 0.92 <= covered / studies <= 0.99


def test_scored_items_are_such_examples():
    items = ScoredItems(names=("x", "y"), groups=("a", "b"), questions=("q", "q"),
                        answers=("yes", "no"))  # fmt: skip
    assert items.pick(np.array([1])).answers == ("no",) and items[0].answer == "yes"
