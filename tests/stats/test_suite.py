"""The suite: which noise is shared decides how it is added up."""

import numpy as np
import pytest

from fusionbench.stats.crossed import compare, crossed_t, t_over_seeds
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import (
    block_components,
    over_families,
    seed_sums,
    shared_image_blocks,
    suite_weights,
    sum_over_shared_runs,
    sum_over_tasks,
)


def a_suite(seeds=5, tasks=3, overlap=False, seed=0):
    rng = np.random.default_rng(seed)
    weights = suite_weights(np.full(tasks, 0.25))
    return [
        TaskScores(
            values=rng.integers(-1, 2, size=(seeds, 60)).astype(float),
            groups=np.arange(60) + (30 if overlap else 1000) * index,
            weight=float(weights[index]),
        )
        for index in range(tasks)
    ]


def test_weights_scale_every_task_from_chance_to_one():
    weights = suite_weights(np.array([0.5, 0.25]))
    assert weights == pytest.approx([1.0, 2 / 3])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        suite_weights(np.array([1.0]))


def test_tasks_of_their_own_runs_add_values_and_variances():
    tasks = a_suite()
    alone = [crossed_t(compare(task.values)) for task in tasks]
    total = sum_over_tasks(tasks)
    w = np.array([task.weight for task in tasks])
    v = np.array([float(e.variance) for e in alone])
    nu = np.array([float(e.nu) for e in alone])
    assert float(total.value) == pytest.approx(float(w @ [float(e.value) for e in alone]))
    assert float(total.variance) == pytest.approx(float(w**2 @ v))
    assert float(total.nu) == pytest.approx((w**2 @ v) ** 2 / (w**4 @ (v**2 / nu)))


def test_a_suite_of_one_task_of_weight_one_is_that_task():
    task = TaskScores(values=a_suite()[0].values, groups=np.arange(60))
    single, suite = crossed_t(compare(task.values)), sum_over_tasks([task])
    for name in ("value", "variance", "nu"):
        assert float(getattr(suite, name)) == pytest.approx(float(getattr(single, name)), rel=1e-12)


def test_shared_runs_take_the_seed_variance_from_the_runs_suite_sums():
    tasks = a_suite()
    blocks = [block_components([task]) for task in tasks]
    runs = t_over_seeds(seed_sums(tasks))
    items = sum(max(float(b.item - b.both), 0) for b in blocks)
    shared = sum_over_shared_runs(tasks)
    assert float(shared.value) == pytest.approx(float(sum_over_tasks(tasks).value))
    assert float(shared.variance) == pytest.approx(float(runs.variance) + items)


def test_a_lucky_run_that_is_lucky_everywhere_widens_only_the_shared_interval():
    rng = np.random.default_rng(1)
    luck = rng.normal(0, 0.2, size=(5, 1))
    tasks = [
        TaskScores(
            values=luck + rng.normal(0, 0.05, size=(5, 60)),
            groups=np.arange(60) + 100 * index,
            weight=0.25,
        )
        for index in range(4)
    ]
    ratio = float(sum_over_shared_runs(tasks).variance / sum_over_tasks(tasks).variance)
    assert ratio == pytest.approx(4, rel=0.1)


def test_tasks_that_share_images_are_one_block_even_through_a_third():
    apart, chained = a_suite(), a_suite(overlap=True)
    assert [len(block) for block in shared_image_blocks(apart)] == [1, 1, 1]
    assert [len(block) for block in shared_image_blocks(chained)] == [3]
    ends_first = [chained[0], chained[2], chained[1]]
    assert [len(block) for block in shared_image_blocks(ends_first)] == [3]


def test_the_same_images_with_the_same_answers_are_not_new_evidence():
    task = a_suite(tasks=1)[0]
    once = sum_over_tasks([TaskScores(values=task.values, groups=task.groups)])
    half = TaskScores(values=task.values, groups=task.groups, weight=0.5)
    for twice in (sum_over_tasks([half, half]), sum_over_shared_runs([half, half])):
        assert float(twice.value) == pytest.approx(float(once.value))
    assert float(sum_over_tasks([half, half]).variance) == pytest.approx(float(once.variance))


def test_a_small_quiet_task_keeps_its_pseudo_images_beside_a_large_one():
    rng = np.random.default_rng(2)
    loud = TaskScores(
        values=rng.integers(-1, 2, size=(5, 500)).astype(float), groups=np.arange(500), weight=0.5
    )
    quiet = TaskScores(values=np.zeros((5, 20)), groups=np.arange(20), weight=0.5)
    parts = block_components([loud, quiet])
    assert int(parts.discordant) == 0
    assert float(parts.variance) > float(crossed_t(compare(quiet.values)).variance) / 4


def test_the_order_of_tasks_does_not_matter():
    tasks = a_suite()
    for combine in (sum_over_tasks, sum_over_shared_runs):
        there, back = combine(tasks), combine(tasks[::-1])
        assert float(there.p_value()) == pytest.approx(float(back.p_value()), rel=1e-12)


def test_a_whole_table_of_methods_gives_each_methods_own_numbers():
    rng = np.random.default_rng(3)
    values = rng.integers(-1, 2, size=(4, 5, 60)).astype(float)
    values[0] = 0
    tasks = [
        TaskScores(values=np.roll(values, shift, axis=-1), groups=np.arange(60) + shift, weight=0.5)
        for shift in (0, 40)
    ]
    for combine in (sum_over_tasks, sum_over_shared_runs):
        table = combine(tasks)
        for row in range(4):
            own = [TaskScores(values=t.values[row], groups=t.groups, weight=0.5) for t in tasks]
            single = combine(own)
            for name in ("value", "variance", "nu"):
                expected = float(getattr(single, name))
                assert float(getattr(table, name)[row]) == pytest.approx(expected, rel=1e-9)


def test_unequal_seeds_cannot_share_runs():
    one, two = a_suite(seeds=5)[0], a_suite(seeds=4)[1]
    assert sum_over_tasks([one, two]).replicates == 4
    with pytest.raises(ValueError, match="same number of seeds"):
        sum_over_shared_runs([one, two])


def test_a_claim_about_new_tasks_counts_families_and_needs_five():
    values = np.array([0.1, 0.3, 0.0, 0.1, -0.1, 0.2])
    families = ["scenes", "scenes", "a", "b", "c", "d"]
    estimate = over_families(values, families)
    means = np.array([0.0, 0.1, -0.1, 0.2, 0.2])
    assert float(estimate.value) == pytest.approx(means.mean())
    assert float(estimate.variance) == pytest.approx(means.var(ddof=1) / 5)
    assert float(estimate.nu) == 4
    with pytest.raises(ValueError, match="at least 5 task families, got 4"):
        over_families(values[1:], ["a", "a", "b", "c", "d"])
