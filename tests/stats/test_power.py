"""Planning uses the formula of the report."""

import numpy as np
import pytest
from nullsuites import SCENARIOS, differences

from fusionbench.stats.crossed import crossed_t, t_over_seeds, two_way
from fusionbench.stats.power import (
    ENDLESS_SEEDS,
    VarianceParts,
    pilot_parts,
    seeds_needed,
    shared_suite_at,
    suite_at,
    variance_parts,
)
from fusionbench.stats.suite import add_blocks, add_blocks_of_shared_runs


def mde(parts, seeds, items, alpha=0.05):
    return crossed_t(parts.at(seeds, items)).mde(alpha)


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
