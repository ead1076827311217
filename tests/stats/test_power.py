"""Planning uses the formula of the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from nullsuites import SCENARIOS, differences
from scipy import stats

from fusionbench.stats.cells import wilson
from fusionbench.stats.crossed import crossed_t, step_down_max_t, t_over_seeds, two_way
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.power import (
    ENDLESS_SEEDS,
    VarianceParts,
    above_chance,
    insensitive,
    over_tasks,
    pilot_parts,
    saturated,
    seeds_needed,
    shared_suite_at,
    suite_at,
    variance_parts,
)
from fusionbench.stats.ranks import (
    average_ranks,
    critical_difference,
    friedman,
)
from fusionbench.stats.suite import add_blocks, add_blocks_of_shared_runs
from fusionbench.stats.verdicts import benjamini_hochberg, holm


def mde(parts, seeds, items, alpha=0.05):
    return crossed_t(parts.at(seeds, items)).mde(alpha)


def near(value):
    return pytest.approx(value, rel=1e-10, abs=1e-10)


def a_pilot(name="typ", seeds=5, items=300, reps=1):
    d = differences(SCENARIOS[name], np.random.default_rng(0), reps=reps, seeds=seeds, items=items)
    return two_way(d[0] if reps == 1 else d)


def test_at_its_own_size_a_pilot_predicts_itself():
    for seed in range(20):
        table = np.random.default_rng(seed).normal(size=(5, 1)) + np.random.default_rng(
            seed + 100
        ).normal(size=(5, 30))
        table += 3 * np.random.default_rng(seed + 200).normal(size=30)
        parts = two_way(table)
        same = variance_parts(parts).at(5, 30)
        for name in ("seed", "item", "both"):
            assert float(getattr(same, name)) == pytest.approx(float(getattr(parts, name)))
        assert float(mde(variance_parts(parts), 5, 30)) == pytest.approx(
            float(crossed_t(parts).mde())
        )


def test_a_cautious_plan_asks_for_more():
    parts = a_pilot()
    assert float(mde(pilot_parts(parts), 10, 300)) > float(mde(variance_parts(parts), 10, 300))


def test_more_seeds_help_down_to_a_floor_that_only_items_can_lower():
    parts = VarianceParts(seed=np.array(0.0004), item=np.array(0.2), both=np.array(0.3))
    mdes = [float(mde(parts, n, 500)) for n in (4, 5, 8, 10, 20, 50, 100)]
    assert mdes == sorted(mdes, reverse=True)
    floor = float(mde(parts, ENDLESS_SEEDS, 500))
    assert floor == pytest.approx((1.960 + 0.842) * np.sqrt(0.2 / 500), rel=1e-3)
    assert mdes[-1] > floor > float(mde(parts, ENDLESS_SEEDS, 2000))


def test_seeds_needed_is_the_first_number_that_is_enough_or_none():
    parts = VarianceParts(seed=np.array(0.0004), item=np.array(0.2), both=np.array(0.3))

    def at(seeds):
        return float(mde(parts, seeds, 5000, 0.05 / 11))

    needed = seeds_needed(at, 0.04)
    assert at(needed) <= 0.04 < at(needed - 1)
    assert seeds_needed(at, float(mde(parts, ENDLESS_SEEDS, 5000, 0.05 / 11)) * 0.99) is None
    with pytest.raises(ValueError, match="effect must be positive"):
        seeds_needed(at, 0.0)


def test_the_seeds_searched_are_4_to_200_with_both_ends():
    assert seeds_needed(lambda seeds: 0.01, 0.01) == 4
    assert seeds_needed(lambda seeds: 2 / seeds, 0.01) == 200
    assert seeds_needed(lambda seeds: 2.001 / seeds, 0.01) is None


def test_a_suite_is_planned_as_it_is_reported():
    rng = np.random.default_rng(5)
    noise = [rng.normal(size=(6, 1)) + rng.normal(size=(6, 40)) for _ in range(3)]
    tables = [table + 3 * rng.normal(size=40) for table in noise]
    blocks = [two_way(table) for table in tables]
    parts = [variance_parts(block) for block in blocks]
    planned, reported = suite_at(parts, [40, 40, 40], seeds=6), add_blocks(blocks)
    assert float(planned.mde()) == pytest.approx(float(reported.mde()))
    sums = np.sum([table.mean(axis=1) for table in tables], axis=0)
    shared = shared_suite_at(parts, [40] * 3, run_variance=np.asarray(sums.var(ddof=1)), seeds=6)
    known = add_blocks_of_shared_runs(blocks, t_over_seeds(sums))
    assert float(shared.mde()) == pytest.approx(float(known.mde()))


# Tasks that cannot tell methods apart: a guesser's binomial, corrected over layers and tasks.


@pytest.mark.parametrize(
    ("right", "examples", "chance"), [(30, 100, 0.25), (1, 2, 0.01), (1, 1, 0.5), (7, 8, 0.5)]
)
def test_the_best_layer_is_tested_against_a_guesser_for_each_layer(right, examples, chance):
    known = stats.binomtest(right, examples, chance, alternative="greater").pvalue
    layers = np.array([right / examples, 0.0, 0.9 * right / examples])
    assert above_chance(layers, chance, examples) == near(min(1.0, 3 * known))


def test_a_mean_over_seeds_is_rounded_down_to_whole_examples():
    part = above_chance(np.array([0.667]), 0.25, 10)
    assert part == above_chance(np.array([0.6]), 0.25, 10)
    # 0.7 * 10 is 6.999... in binary; seven are right.
    assert above_chance(np.array([0.7]), 0.25, 10) < part


def test_a_layer_that_answers_nothing_right_is_not_above_chance():
    assert above_chance(np.array([0.0]), 0.25, 100) == 1.0
    assert above_chance(np.array([0.004]), 0.0001, 100) == 1.0


def test_impossible_scores_and_empty_tasks_are_refused():
    for scores, chance in (([1.1], 0.5), ([-0.1], 0.5), ([0.5], 1.1), ([0.5], -0.1)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            above_chance(np.array(scores), chance, 10)
    with pytest.raises(ValueError, match="without test examples"):
        above_chance(np.array([0.5]), 0.5, 0)


def test_a_task_is_insensitive_above_five_percent_by_holm():
    assert over_tasks(np.array([0.01, 0.04, 0.2])).tolist() == near([0.03, 0.08, 0.2])
    assert insensitive(np.array([0.01, 0.04, 0.2])).tolist() == [False, True, True]
    assert insensitive(np.array([0.05])).tolist() == [False]


def test_a_task_is_saturated_when_its_worst_layer_is_above_98_percent():
    assert saturated(np.array([0.99, 0.981]))
    assert not saturated(np.array([1.0, 0.98]))


# The same numbers as scipy, and as statsmodels and scikit-posthocs (recorded), to 1e-10.

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "agreement.json").read_text())


@pytest.mark.parametrize("case", RECORDED["anova"])
def test_the_components_are_the_mean_squares_of_a_two_way_anova(case):
    table = np.array(case["differences"])
    parts = two_way(table)
    squares = [float(part) * table.size for part in (parts.seed, parts.item, parts.both)]
    assert squares == near(case["mean_squares"])


def test_the_t_over_seeds_is_students():
    values = np.random.default_rng(3).normal(0.01, 0.02, size=9)
    estimate, known = t_over_seeds(values), stats.ttest_1samp(values, 0.0)
    assert float(estimate.p_value()) == near(known.pvalue)
    low, high = estimate.interval()
    assert (float(low), float(high)) == near(tuple(known.confidence_interval()))


def test_equivalence_is_two_one_sided_t_tests():
    case = RECORDED["tost"]
    estimate = t_over_seeds(np.array(case["one"]) - np.array(case["two"]))
    assert float(estimate.p_equivalent(case["margin"])) == near(case["p"])


def test_quantiles_are_those_of_scipys_t():
    estimate = Estimate(
        value=np.zeros(3), variance=np.ones(3), nu=np.array([4.0, 7.3, 1e5]), replicates=5
    )
    assert estimate.half_width(0.05 / 11).tolist() == near(
        stats.t.ppf(1 - 0.05 / 22, estimate.nu).tolist()
    )


def test_holm_and_benjamini_hochberg_agree_with_statsmodels():
    p_values = np.array(RECORDED["p_values"])
    assert holm(p_values).tolist() == near(RECORDED["holm"])
    assert benjamini_hochberg(p_values).tolist() == near(RECORDED["fdr_bh"])


def test_the_sign_flip_test_is_scipys_exact_permutation_test():
    values = np.array([0.4, -0.1, 0.3, 0.2, 0.5, -0.2, 0.35])
    known = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert float(step_down_max_t(values[None]).p_value[0]) == near(known.pvalue)


@pytest.mark.parametrize("case", RECORDED["wilson"])
def test_wilsons_interval_agrees_with_statsmodels(case):
    mean, n = np.array(case["correct"] / case["n"]), np.array(float(case["n"]))
    low, high = wilson(mean, n, np.array(stats.norm.ppf(0.975)))
    assert [float(low), float(high)] == near(case["ends"])


def test_friedman_agrees_with_scipy_with_and_without_ties():
    for scores in (
        np.array(RECORDED["nemenyi"]["scores"]),
        np.random.default_rng(4).random((4, 7)),
    ):
        known = stats.friedmanchisquare(*scores)
        assert friedman(scores) == near((known.statistic, known.pvalue))


def test_the_critical_difference_is_nemenyis():
    scores = np.array(RECORDED["nemenyi"]["scores"])
    ranks, p = average_ranks(scores), np.array(RECORDED["nemenyi"]["p"])
    methods, tasks = scores.shape
    # A pair whose p is alpha lies exactly one critical difference apart.
    pairs = [pair for pair in zip(*np.triu_indices(methods, 1), strict=True) if p[pair] < 0.99]
    assert len(pairs) >= 5
    for one, two in pairs:
        gap = abs(float(ranks[one] - ranks[two]))
        assert critical_difference(methods, tasks, alpha=p[one, two]) == near(gap)
