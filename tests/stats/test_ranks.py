"""Ranks describe; they decide nothing."""

import numpy as np
import pytest

from fusionbench.stats.groups import TaskScores
from fusionbench.stats.ranks import average_ranks, critical_difference, rank_intervals, rank_table


def some_tasks(methods=4, tasks=3):
    rng = np.random.default_rng(0)
    level = np.linspace(0.85, 0.55, methods)[:, None, None]
    return [
        TaskScores(
            values=(rng.random((methods, 5, 80)) < level).astype(float),
            groups=np.arange(80) // 2,
        )
        for _ in range(tasks)
    ]


def test_rank_one_is_the_best_and_ties_share():
    scores = np.array([[0.9, 0.9], [0.8, 0.9], [0.1, 0.2]])
    assert average_ranks(scores).tolist() == [1.25, 1.75, 3.0]


def test_the_critical_difference_eats_up_the_range_of_many_methods():
    assert critical_difference(10, 14) == pytest.approx(3.6, abs=0.05)
    assert critical_difference(45, 14) == pytest.approx(19.6, abs=0.05)
    assert rank_table(np.random.default_rng(1).random((10, 6))).critical_share == pytest.approx(
        0.61, abs=0.01
    )


def test_more_than_ten_representatives_are_refused():
    with pytest.raises(ValueError, match="at most 10 methods"):
        rank_table(np.zeros((11, 5)))


def test_equal_methods_have_equal_ranks_and_no_evidence():
    table = rank_table(np.full((4, 6), 0.5))
    assert table.average.tolist() == [2.5] * 4
    assert (table.statistic, table.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("scope", ["task", "suite"])
def test_a_rank_interval_depends_on_its_generator_and_on_nothing_else(scope):
    tasks = some_tasks()
    first = rank_intervals(tasks, scope, rng=np.random.default_rng(3), resamples=200)
    np.random.seed(0)  # noqa: NPY002
    again = rank_intervals(tasks, scope, rng=np.random.default_rng(3), resamples=200)
    assert np.array_equal(first, again)
    assert not np.array_equal(
        first, rank_intervals(tasks, scope, rng=np.random.default_rng(4), resamples=200)
    )


def test_rank_intervals_hold_the_average_rank_of_methods_far_apart():
    tasks = some_tasks()
    means = np.stack([task.values.mean(axis=(1, 2)) for task in tasks], axis=1)
    low, high = rank_intervals(tasks, "task", rng=np.random.default_rng(5), resamples=300)
    ranks = average_ranks(means)
    assert ((low <= ranks) & (ranks <= high)).all()
    assert ((low >= 1) & (high <= 4)).all()


def test_identical_methods_share_their_rank_in_every_resample():
    values = np.tile((np.random.default_rng(6).random((1, 5, 40)) < 0.7).astype(float), (3, 1, 1))
    task = TaskScores(values=values, groups=np.arange(40))
    low, high = rank_intervals([task], "task", rng=np.random.default_rng(7), resamples=100)
    assert low.tolist() == high.tolist() == [2.0, 2.0, 2.0]
