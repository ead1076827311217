"""The same numbers as scipy, and as statsmodels and scikit-posthocs (recorded), to 1e-10."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fusionbench.stats.cells import wilson
from fusionbench.stats.crossed import step_down_max_t, t_over_seeds, two_way
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.ranks import (
    average_ranks,
    critical_difference,
    friedman,
)
from fusionbench.stats.verdicts import benjamini_hochberg, holm

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "agreement.json").read_text())


def near(value):
    return pytest.approx(value, rel=1e-10, abs=1e-10)


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
