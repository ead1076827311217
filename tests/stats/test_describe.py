"""Pictures of many scores: no p-value comes from here."""

import numpy as np
import pytest

from fusionbench.stats.ranks import outlying_seeds, performance_profile


def test_a_profile_falls_from_all_to_none():
    scores = np.array([[0.2, 0.4], [0.6, 0.8]])
    profile = performance_profile(scores, np.array([0.0, 0.4, 0.5, 0.8, 1.0]))
    assert profile.tolist() == [1.0, 0.5, 0.5, 0.0, 0.0]


def test_a_collapsed_run_is_flagged_and_one_answer_is_not():
    scores = np.array([0.80, 0.81, 0.79, 0.80, 0.20])
    assert outlying_seeds(scores).tolist() == [False] * 4 + [True]
    nearly_equal = np.array([0.98, 0.98, 0.98, 0.98, 0.985])
    assert outlying_seeds(nearly_equal, step=1 / 200).any() is np.False_


def test_nan_is_refused_everywhere():
    bad = np.array([[0.1, np.nan]])
    for describe in (outlying_seeds, lambda x: performance_profile(x, np.array([0.5]))):
        with pytest.raises(ValueError, match="NaN"):
            describe(bad)
