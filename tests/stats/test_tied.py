"""All pairs by matrix products, and the set that may hold the best method."""

import numpy as np
import pytest

from fusionbench.stats.crossed import compare, crossed_t
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import sum_over_shared_runs, sum_over_tasks
from fusionbench.stats.tied import (
    shared_run_suite_pairs,
    suite_pairs,
    task_pairs,
    tied_set,
)


def a_task(methods=6, seeds=5, items=60, first=0, seed=0, weight=1.0):
    rng = np.random.default_rng(seed)
    values = (rng.random((methods, seeds, items)) < 0.7).astype(float)
    values[1] = values[0]
    values[2] = values[0]
    values[2, :, 3] = 1 - values[2, :, 3]
    return TaskScores(values=values, groups=np.arange(items) // 2 + first, weight=weight)


def numbers(estimate):
    return [float(getattr(estimate, name)) for name in ("value", "variance", "nu")]


def test_every_pair_is_the_crossed_t_of_its_difference():
    task = a_task()
    pairs = task_pairs(task)
    for m, k in ((0, 3), (3, 0), (0, 1), (0, 2), (4, 5)):
        single = crossed_t(compare(task.values[m] - task.values[k], task.groups))
        assert numbers(pairs[m, k]) == pytest.approx(numbers(single), rel=1e-9)


def test_every_suite_pair_is_the_suite_estimate_of_its_difference():
    tasks = [a_task(seed=s, first=20 * s, weight=0.3) for s in range(2)]
    tasks.append(a_task(seed=7, first=500, weight=0.5))
    for table, single in (
        (suite_pairs(tasks), sum_over_tasks),
        (shared_run_suite_pairs(tasks), sum_over_shared_runs),
    ):
        for m, k in ((0, 3), (5, 2), (0, 1)):
            own = [
                TaskScores(values=t.values[m] - t.values[k], groups=t.groups, weight=t.weight)
                for t in tasks
            ]
            assert numbers(table[m, k]) == pytest.approx(numbers(single(own)), rel=1e-9)


def test_identical_methods_are_zero_apart_and_both_stay():
    pairs = task_pairs(a_task())
    assert float(pairs.value[0, 1]) == 0
    assert float(pairs.p_value()[0, 1]) == 1
    stays = tied_set(pairs)
    assert stays[0] == stays[1]


def test_a_clearly_worse_method_leaves_and_the_winner_always_stays():
    rng = np.random.default_rng(1)
    values = (rng.random((4, 5, 400)) < np.array([0.9, 0.89, 0.5, 0.4])[:, None, None]).astype(
        float
    )
    pairs = task_pairs(TaskScores(values=values, groups=np.arange(400)))
    assert tied_set(pairs).tolist() == [True, True, False, False]


def test_a_method_more_changes_no_pair_of_the_others():
    task = a_task()
    fewer = TaskScores(values=task.values[:4], groups=task.groups)
    for name in ("value", "variance", "nu"):
        more, few = getattr(task_pairs(task), name), getattr(task_pairs(fewer), name)
        assert more[:4, :4] == pytest.approx(few, rel=1e-9)


def test_a_single_method_is_its_own_tied_set():
    alone = TaskScores(values=a_task().values[:1], groups=a_task().groups)
    assert tied_set(task_pairs(alone)).tolist() == [True]


def test_the_limit_is_shared_by_the_pairs_of_one_method():
    """Three methods, two pairs each: t at 0.975 with 4 degrees of freedom is 2.7764."""

    def stays(behind):
        value = np.array([[0.0, behind, 9.0], [-behind, 0.0, 9.0], [-9.0, -9.0, 0.0]])
        table = Estimate(
            value=value, variance=np.ones((3, 3)), nu=np.full((3, 3), 4.0), replicates=5
        )
        return tied_set(table).tolist()

    assert stays(2.776) == [True, True, False]
    assert stays(2.777) == [True, False, False]
