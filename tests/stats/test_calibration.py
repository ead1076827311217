"""A 95 % interval covers the truth about 95 times in 100.

Quick forms run always with few repetitions and two Monte-Carlo standard errors of room; the
`slow` forms have at least 2,000 and, in regular scenarios, no room at all.
"""

import numpy as np
import pytest
from nullsuites import SCENARIOS, Scenario, chunks, differences, levels, monte_carlo_se, two_methods
from scipy.special import ndtr

from fusionbench.stats.cells import share_correct
from fusionbench.stats.crossed import compare, crossed_t, t_over_seeds
from fusionbench.stats.suite import over_families

EFFORT = [300, pytest.param(10_000, marks=pytest.mark.slow)]
NEAR_TIE = Scenario(accuracy=0.994)


def room(reps):
    return 2 * monte_carlo_se(0.05, reps) if reps < 2_000 else 0.0


def covered(estimate, truth):
    low, high = estimate.interval()
    return (low <= truth + 1e-12) & (truth - 1e-12 <= high)


def coverage(scenario, reps, record_property, effect=0.0, **size):
    rng, hits, widths = np.random.default_rng(11), [], []
    for part in chunks(reps):
        estimate = crossed_t(compare(differences(scenario, rng, reps=part, effect=effect, **size)))
        hits.append(covered(estimate, effect))
        widths.append(estimate.half_width())
    record_property("coverage", float(np.concatenate(hits).mean()))
    record_property("half_width_points", 100 * float(np.concatenate(widths).mean()))
    return np.concatenate(hits).mean()


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("name", ["typ", "item", "unstable", "heavy"])
def test_ten_seeds_cover_93_to_97_percent(name, reps, record_property):
    found = coverage(SCENARIOS[name], reps, record_property, seeds=10, items=300)
    assert 0.93 - room(reps) <= found <= 0.97 + room(reps)


@pytest.mark.parametrize("reps", EFFORT)
def test_ten_seeds_cover_a_real_effect_as_well(reps, record_property):
    found = coverage(SCENARIOS["typ"], reps, record_property, effect=0.03, seeds=10, items=300)
    assert 0.93 - room(reps) <= found <= 0.97 + room(reps)


@pytest.mark.parametrize("reps", [100, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["typ", "item"])
def test_many_items_are_covered_as_well(name, reps, record_property):
    found = coverage(SCENARIOS[name], reps, record_property, seeds=10, items=2000)
    assert 0.93 - room(reps) <= found <= 0.97 + room(reps)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_five_seeds_cover_at_least_93_percent(name, reps, record_property):
    found = coverage(SCENARIOS[name], reps, record_property, seeds=5, items=300)
    assert found >= 0.93 - room(reps)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("name", ["ceil", "clone", "no item effect"])
def test_near_the_ceiling_and_with_clones_coverage_is_at_least_93_percent(
    name, reps, record_property
):
    found = coverage(SCENARIOS[name], reps, record_property, seeds=10, items=300)
    assert found >= 0.93 - room(reps)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("seeds", [5, 10])
def test_ties_are_covered_thanks_to_the_pseudo_items(seeds, reps, record_property):
    found = coverage(NEAR_TIE, reps, record_property, effect=0.002, seeds=seeds, items=300)
    assert found >= 0.93 - room(reps)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("seeds", [5, 10])
def test_four_questions_per_image_are_covered_when_grouped(seeds, reps, record_property):
    rng, hits, images = np.random.default_rng(12), [], np.repeat(np.arange(100), 4)
    for part in chunks(reps):
        d = differences(SCENARIOS["item"], rng, reps=part, seeds=seeds, items=400, questions=4)
        hits.append(covered(crossed_t(compare(d, images)), 0.0))
    found = np.concatenate(hits).mean()
    record_property("coverage", float(found))
    assert 0.93 - room(reps) <= found


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("accuracy", [0.75, 0.95, 0.99, 0.997])
@pytest.mark.parametrize("seeds", [5, 10])
def test_cells_are_covered_up_to_the_ceiling(accuracy, seeds, reps, record_property):
    rng, hits, scenario = np.random.default_rng(13), [], Scenario(accuracy=accuracy)
    for part in chunks(reps):
        y = two_methods(scenario, rng, reps=part, seeds=seeds, items=300)[:, 0]
        cell = share_correct(y, np.arange(300))
        hits.append((cell.low <= accuracy) & (accuracy <= cell.high))
    found = np.concatenate(hits).mean()
    record_property("coverage", float(found))
    assert found >= 0.93 - room(reps)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("seeds", [5, 10])
def test_the_second_column_covers_this_very_test_set(seeds, reps, record_property):
    scenario, rng, hits = Scenario(method_seed=0.10), np.random.default_rng(14), []
    shape, fixed = (2, 1, 300), np.hypot(scenario.item, scenario.method_item)
    for _ in range(reps // 100):
        at_items = levels(scenario)[:, None, None] + fixed * rng.standard_normal(shape)
        by_run = scenario.method_seed * rng.standard_normal((100, 2, seeds, 1))
        y = ndtr(at_items + by_run) > rng.random((100, 2, seeds, 300))
        truth = ndtr(at_items / np.hypot(1, scenario.method_seed)).mean(axis=(1, 2))
        d = y[:, 1].mean(axis=-1) - y[:, 0].mean(axis=-1)
        hits.append(covered(t_over_seeds(d), truth[1] - truth[0]))
    found = np.concatenate(hits).mean()
    record_property("coverage", float(found))
    assert 0.93 - room(reps) <= found <= 0.97 + room(reps)


def test_task_families_cover_new_tasks(record_property):
    rng, families = np.random.default_rng(15), [f"family {k}" for k in range(6)]
    true = rng.normal(0, 1, size=(2_000, 6))
    hits = [covered(over_families(row, families), 0.0) for row in true]
    record_property("coverage", float(np.mean(hits)))
    assert 0.93 <= np.mean(hits) <= 0.97
