"""Procedures that look right and are wrong must fail here, or the calibration has no teeth.

Each test shows a wrong model missing its promise by far on data on which ours keeps it.
"""

import numpy as np
import pytest
from nullsuites import METHODS, SCENARIOS, SUITE, NullTask, against, differences, null_suite

from fusionbench.stats.crossed import compare, crossed_t, t_over_seeds
from fusionbench.stats.suite import sum_over_tasks
from fusionbench.stats.verdicts import holm

EFFORT = [60, pytest.param(2_000, marks=pytest.mark.slow)]

# Enough images that a run's luck is what is left to get wrong.
MANY_IMAGES = tuple(
    NullTask(task.accuracy, images, 1, pool)
    for pool, (task, images) in enumerate(zip(SUITE, (200, 300, 500, 1000, 400, 2000), strict=True))
)


def covers_zero(low, high):
    return (low <= 1e-12) & (high >= -1e-12)


def nested_bootstrap(d, rng, resamples=200):
    """Seeds with replacement, then items anew inside each seed: n times too little item noise."""
    seeds, items = d.shape
    shares = np.stack([(d == value).mean(axis=-1) for value in (-1, 0, 1)], axis=-1)
    chosen = shares[rng.integers(0, seeds, size=(resamples, seeds))]
    counts = rng.multinomial(items, chosen)
    means = (counts[..., 2] - counts[..., 0]).mean(axis=-1) / items
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("reps", EFFORT)
def test_the_nested_bootstrap_covers_about_70_percent_where_items_matter(reps, record_property):
    rng = np.random.default_rng(71)
    d = differences(SCENARIOS["item"], rng, reps=reps, seeds=10, items=300)
    nested = np.mean([covers_zero(*nested_bootstrap(table, rng)) for table in d])
    ours = covers_zero(*crossed_t(compare(d)).interval()).mean()
    record_property("nested", float(nested))
    record_property("ours", float(ours))
    assert nested < 0.80 < 0.90 < ours


@pytest.mark.parametrize("reps", EFFORT)
def test_the_t_over_seeds_covers_about_half_where_items_matter(reps, record_property):
    d = differences(SCENARIOS["item"], np.random.default_rng(72), reps=reps, seeds=10, items=300)
    found = covers_zero(*t_over_seeds(d.mean(axis=-1)).interval()).mean()
    record_property("coverage", float(found))
    assert found < 0.65


@pytest.mark.parametrize("reps", EFFORT)
def test_a_question_taken_for_an_item_covers_far_too_rarely(reps, record_property):
    rng = np.random.default_rng(73)
    d = differences(SCENARIOS["item"], rng, reps=reps, seeds=10, items=400, questions=4)
    found = covers_zero(*crossed_t(compare(d)).interval()).mean()
    record_property("coverage", float(found))
    assert found < 0.85


@pytest.mark.parametrize("reps", [120, pytest.param(2_000, marks=pytest.mark.slow)])
def test_adding_variances_of_shared_runs_raises_false_alarms(reps, record_property):
    rng, found = np.random.default_rng(74), []
    for _ in range(reps):
        suite = null_suite(rng, seeds=10, shared_runs=True, tasks=MANY_IMAGES)
        p = sum_over_tasks(against(suite, 0, np.arange(1, METHODS))).p_value()
        found.append(holm(p).min() < 0.05)
    record_property("fwer", float(np.mean(found)))
    assert np.mean(found) > 0.08


@pytest.mark.parametrize("reps", EFFORT)
def test_the_t_over_seeds_in_48_cells_raises_false_alarms(reps, record_property):
    rng, found = np.random.default_rng(75), []
    for _ in range(reps):
        suite = null_suite(rng, seeds=10, shared_runs=False)
        means = [(y[1:].astype(float) - y[0]).mean(axis=-1) for y, _ in suite]
        found.append(holm(np.concatenate([t_over_seeds(d).p_value() for d in means])).min() < 0.05)
    record_property("fwer", float(np.mean(found)))
    assert np.mean(found) > 0.15
