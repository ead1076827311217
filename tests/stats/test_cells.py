"""The interval of a single score."""

import numpy as np
import pytest
from nullsuites import SCENARIOS, two_methods

from fusionbench.stats.cells import mean_score, share_correct


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
