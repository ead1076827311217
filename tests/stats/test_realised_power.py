"""Power is what was predicted, equivalence is not claimed at the margin, the best stays tied."""

from dataclasses import replace

import numpy as np
import pytest
from nullsuites import SCENARIOS, chunks, differences, monte_carlo_se
from scipy.special import ndtri

from fusionbench.stats.crossed import compare, crossed_t, two_way
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.power import VarianceParts
from fusionbench.stats.tied import task_pairs, tied_set

EFFORT = [300, pytest.param(10_000, marks=pytest.mark.slow)]
LESS_EFFORT = [150, pytest.param(2_000, marks=pytest.mark.slow)]


def population(scenario, seeds, items, effect, reps=1000):
    """Expected variance parts, from many small tables (they do not depend on the size)."""
    rng = np.random.default_rng(16)
    parts = two_way(differences(scenario, rng, reps=reps, seeds=seeds, items=items, effect=effect))
    both = float(parts.both.mean()) * seeds * items
    seed = max(float(parts.seed.mean()) * seeds - both / items, 0.0)
    item = max(float(parts.item.mean()) * items - both / seeds, 0.0)
    return VarianceParts(seed=np.asarray(seed), item=np.asarray(item), both=np.asarray(both))


@pytest.mark.parametrize("reps", [400, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 11])
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("name", ["typ", "item", "unstable"])
def test_an_effect_of_the_mde_is_found_four_times_in_five(
    name, seeds, alpha, reps, record_property
):
    # From 0.55 upwards, so that an effect of 20 points still has room.
    scenario, effect = replace(SCENARIOS[name], accuracy=0.55), 0.0
    rng = np.random.default_rng(17)
    for _ in range(3):
        parts = population(scenario, seeds, 300, effect, min(reps, 1_000))
        effect = float(crossed_t(parts.at(seeds, 300)).mde(alpha))
    found = []
    for part in chunks(reps):
        d = differences(scenario, rng, reps=part, seeds=seeds, items=300, effect=effect)
        found.append(crossed_t(compare(d)).p_value() < alpha)
    power = np.concatenate(found).mean()
    record_property("effect_points", 100 * effect)
    record_property("power", float(power))
    assert abs(power - 0.80) <= 0.04 + (2 * monte_carlo_se(0.8, reps) if reps < 2_000 else 0)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("seeds", [5, 10])
def test_a_difference_as_large_as_the_margin_is_rarely_called_equivalent(
    seeds, reps, record_property
):
    rng, called = np.random.default_rng(18), []
    for part in chunks(reps):
        d = differences(SCENARIOS["typ"], rng, reps=part, seeds=seeds, items=1000, effect=0.04)
        called.append(crossed_t(compare(d)).p_equivalent(0.04) < 0.05)
    size = np.concatenate(called).mean()
    record_property("size", float(size))
    assert size <= 0.05 + 2 * monte_carlo_se(0.05, reps)


@pytest.mark.parametrize("reps", LESS_EFFORT)
@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_the_tied_set_holds_the_best_of_twelve(spread, reps, record_property):
    rng, kept, sizes = np.random.default_rng(19), [], []
    truth = 0.75 + np.linspace(0, spread, 12)
    sd = np.sqrt(1 + 1 + 0.4**2 + 0.05**2)
    for _ in range(reps):
        fixed = rng.standard_normal((1, 1, 300)) + 0.4 * rng.standard_normal((12, 1, 300))
        run = 0.05 * rng.standard_normal((12, 10, 1))
        mu = (ndtri(truth) * sd)[:, None, None]
        y = mu + fixed + run + rng.standard_normal((12, 10, 300), dtype=np.float32) > 0
        stays = tied_set(task_pairs(TaskScores(values=y.astype(float), groups=np.arange(300))))
        kept.append(stays[-1])
        sizes.append(stays.sum())
    record_property("holds_the_best", float(np.mean(kept)))
    record_property("size", float(np.mean(sizes)))
    assert np.mean(kept) >= 0.95 - 2 * monte_carlo_se(0.05, reps)
