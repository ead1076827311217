"""Pictures of many scores: no p-value comes from here."""

import numpy as np
import pytest

from fusionbench.stats.ranks import (
    iqm,
    outlying_seeds,
    performance_profile,
    probability_of_improvement,
)


def test_the_interquartile_mean_is_deaf_to_one_collapsed_run():
    scores = np.full((5, 4), 0.8)
    scores[0, 0] = 0.0
    assert iqm(scores) == pytest.approx(0.8)


def test_a_profile_falls_from_all_to_none():
    scores = np.array([[0.2, 0.4], [0.6, 0.8]])
    profile = performance_profile(scores, np.array([0.0, 0.4, 0.5, 0.8, 1.0]))
    assert profile.tolist() == [1.0, 0.5, 0.5, 0.0, 0.0]


def test_improvement_over_oneself_is_a_coin_toss():
    scores = np.random.default_rng(0).random((6, 3))
    assert probability_of_improvement(scores, scores) == 0.5
    assert probability_of_improvement(scores + 2, scores) == 1.0
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(scores, scores[:, :2])


def test_a_collapsed_run_is_flagged_and_one_answer_is_not():
    scores = np.array([0.80, 0.81, 0.79, 0.80, 0.20])
    assert outlying_seeds(scores).tolist() == [False] * 4 + [True]
    nearly_equal = np.array([0.98, 0.98, 0.98, 0.98, 0.985])
    assert outlying_seeds(nearly_equal, step=1 / 200).any() is np.False_


def test_nan_is_refused_everywhere():
    bad = np.array([[0.1, np.nan]])
    for describe in (
        iqm,
        outlying_seeds,
        lambda x: performance_profile(x, np.array([0.5])),
        lambda x: probability_of_improvement(x, x),
    ):
        with pytest.raises(ValueError, match="NaN"):
            describe(bad)
