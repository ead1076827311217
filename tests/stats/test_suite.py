"""The suite: which noise is shared decides how it is added up."""

from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from nullsuites import (
    METHODS,
    SMALL_SUITE,
    SUITE,
    against,
    cloned,
    draw,
    monte_carlo_se,
    null_suite,
)

from fusionbench.stats.crossed import (
    compare,
    crossed_t,
    guard,
    step_down_max_t,
    t_over_seeds,
    two_way,
    weighted_sum,
)
from fusionbench.stats.factorial import factorial_effects
from fusionbench.stats.groups import TaskScores, by_group, merge, refuse_wrong_groups
from fusionbench.stats.suite import (
    block_components,
    over_families,
    seed_sums,
    shared_image_blocks,
    suite_weights,
    sum_over_shared_runs,
    sum_over_tasks,
)
from fusionbench.stats.verdicts import Correction, Question, Verdict, judge, judge_groups


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


def test_the_nu_of_shared_runs_is_satterthwaites_over_runs_and_blocks():
    tasks = a_suite()
    blocks = [block_components([task]) for task in tasks]
    runs = float(t_over_seeds(seed_sums(tasks)).variance)
    of_runs = float(guard(5)) * runs
    items = sum(max(float(b.item - b.both), 0) for b in blocks)
    spread = of_runs**2 / 4
    for block in blocks:
        spread += float(block.item) ** 2 / (float(block.items) - 1)
        spread += float(block.both) ** 2 / (4 * (float(block.items) - 1))
    known = (of_runs + items) ** 2 / spread
    assert known > 4
    assert float(sum_over_shared_runs(tasks).nu) == pytest.approx(known, rel=1e-12)


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


# The image is the unit, within a task and across tasks.


def test_grouping_keeps_every_seeds_mean_and_sums_questions_by_image():
    d = np.random.default_rng(0).normal(size=(3, 7))
    groups = np.array(["a", "b", "a", "c", "b", "a", "c"])
    x = by_group(d, groups)
    assert x.shape == (3, 3)
    assert x.mean() == pytest.approx(d.mean())
    expected = d.mean() + 3 / 7 * (d[:, groups == "a"] - d.mean()).sum(axis=1)
    assert x[:, 0] == pytest.approx(expected)


def test_grouping_equal_groups_is_the_mean_over_questions():
    d = np.random.default_rng(1).normal(size=(3, 8))
    assert by_group(d, np.repeat(np.arange(4), 2)) == pytest.approx(d.reshape(3, 4, 2).mean(-1))


def test_grouping_is_linear_so_scores_may_be_grouped_before_they_are_subtracted():
    rng = np.random.default_rng(2)
    one, two = rng.random((2, 4, 9))
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3])
    assert by_group(one - two, groups) == pytest.approx(
        by_group(one, groups) - by_group(two, groups)
    )


def test_ignoring_images_makes_intervals_too_short():
    rng = np.random.default_rng(3)
    image = np.tile(rng.integers(-1, 2, size=50).astype(float), (5, 1))
    d, groups = np.repeat(image, 4, axis=1), np.repeat(np.arange(50), 4)
    by_image, by_question = crossed_t(compare(d, groups)), crossed_t(compare(d))
    assert float(by_image.variance) > 3.9 * float(by_question.variance)


def test_tasks_on_the_same_images_become_one_table_with_the_weighted_mean():
    rng = np.random.default_rng(4)
    tasks = [
        TaskScores(values=rng.normal(size=(4, 6)), groups=np.arange(6), weight=0.3),
        TaskScores(values=rng.normal(size=(4, 9)), groups=np.arange(9) // 2 + 2, weight=0.7),
    ]
    merged = merge(tasks)
    assert merged.shape == (4, 7)
    assert merged.mean() == pytest.approx(
        0.3 * tasks[0].values.mean() + 0.7 * tasks[1].values.mean()
    )


def test_one_task_split_into_two_halves_of_every_image_is_still_one_task():
    rng = np.random.default_rng(5)
    d, images = rng.normal(size=(5, 40)), np.tile(np.arange(20), 2)
    halves = [
        TaskScores(values=d[:, :20], groups=images[:20], weight=0.5),
        TaskScores(values=d[:, 20:], groups=images[20:], weight=0.5),
    ]
    whole, merged = two_way(by_group(d, images)), two_way(merge(halves))
    assert float(merged.value) == pytest.approx(float(whole.value))
    assert float(merged.seed) == pytest.approx(float(whole.seed))


def test_wrong_group_names_are_refused():
    d = np.zeros((3, 4))
    with pytest.raises(ValueError, match="one image per item"):
        refuse_wrong_groups(d, np.arange(3))
    with pytest.raises(ValueError, match="all items belong to one image"):
        by_group(d, np.zeros(4))
    tasks = [TaskScores(values=np.zeros((s, 4)), groups=np.arange(4)) for s in (3, 4)]
    with pytest.raises(ValueError, match="same number of seeds"):
        merge(tasks)


# Null suites: no method differs from another, and each group of tests errs at most 1 time in 20.
#
# All decisions come from `verdicts.judge`, the function that every report calls.
#
# Nine methods (four near-clones) of unequal stability on six tasks: 100 to 2,000 images, accuracies
# 0.55 to 0.985, up to four questions per image, two tasks on the same images; runs of their own per
# task, or shared by all tasks.

EFFORT = [60, pytest.param(2_000, marks=pytest.mark.slow)]
COMBINE = {False: sum_over_tasks, True: sum_over_shared_runs}
NO_ALARM = (Verdict.EQUIVALENT, Verdict.UNDECIDED, Verdict.OPEN)


def asked(*references, margin=None):
    """One question for each row of the references' tables."""
    return [
        Question(references=tuple(table[row] for table in references), margin=margin)
        for row in range(len(references[0].value))
    ]


def alarm(answers):
    return any(answer.verdict not in NO_ALARM for answer in answers)


def alarms(suite, shared_runs):
    """False alarms of each correction group in one null suite, and the size of one contrast."""
    combine = COMBINE[shared_runs]
    tasks = against(suite, 0, np.arange(1, METHODS))
    cells = [crossed_t(compare(task.values, task.groups)) for task in tasks]
    planned, tests = combine(tasks), [one for table in cells for one in asked(table)]
    to_both = [combine(against(suite, reference, np.arange(2, METHODS))) for reference in (0, 1)]
    return {
        "suite, Holm": alarm(judge(asked(planned, margin=0.01), Correction.HOLM)),
        "suite, one contrast": (planned.p_value() < 0.05).mean(),
        "suite, both references": alarm(judge(asked(*to_both, margin=0.01), Correction.HOLM)),
        "48 cells, Holm": alarm(judge(tests, Correction.HOLM)),
        "48 cells, one contrast": np.mean([table.p_value() < 0.05 for table in cells]),
        "48 cells, Benjamini-Hochberg": alarm(judge(tests, Correction.BENJAMINI_HOCHBERG)),
    }


@lru_cache(maxsize=8)
def rates(seeds, shared_runs, reps):
    rng = np.random.default_rng(31 + seeds)
    tasks = SUITE if reps >= 2_000 else SMALL_SUITE
    suites = (
        null_suite(rng, seeds=seeds, shared_runs=shared_runs, tasks=tasks) for _ in range(reps)
    )
    found = [alarms(suite, shared_runs) for suite in suites]
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


@pytest.mark.thorough
@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("shared_runs", [False, True])
@pytest.mark.parametrize("seeds", [4, 5, 10])
def test_no_group_raises_a_false_alarm_more_than_once_in_twenty(
    seeds, shared_runs, reps, record_property
):
    for name, rate in rates(seeds, shared_runs, reps).items():
        record_property(name, rate)
        assert rate <= 0.05 + 2 * monte_carlo_se(0.05, reps), name


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("contrasts", [8, 44])
def test_joint_sign_flips_keep_their_promise_for_this_test_set(contrasts, reps, record_property):
    rng, found = np.random.default_rng(41), []
    for _ in range(reps):
        # On fixed images the runs are all that varies; every method shares the reference's luck.
        luck = np.concatenate([cloned(draw(rng, METHODS, 10)), draw(rng, 36, 10)])
        found.append(step_down_max_t(luck[1 : contrasts + 1] - luck[0]).p_value.min() < 0.05)
    record_property("fwer", float(np.mean(found)))
    assert np.mean(found) <= 0.05 + 2 * monte_carlo_se(0.05, reps)


SWITCHES = ("memory", "feedback", "query")
CELLS = np.array(list(product((False, True), repeat=3)))
EFFECTS = [effect for effect in factorial_effects(SWITCHES, CELLS) if effect.order <= 2]
ORDERS = [str(effect.order) for effect in EFFECTS]


def null_ablation(rng, seeds, items=300):
    """Eight cells without any effect; turning the first switch on makes runs unstable."""
    run_sd = np.where(CELLS[:, 0], 0.30, 0.03)[:, None, None]
    by_item = draw(rng, 1, 1, items) + 0.4 * draw(rng, 8, 1, items)
    y = by_item + run_sd * draw(rng, 8, seeds, 1) + draw(rng, 8, seeds, items)
    return (y + 0.67 * np.sqrt(1 + 1 + 0.16 + run_sd**2) > 0).astype(float)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("seeds", [4, 5, 10])
def test_an_unstable_switch_alarms_neither_main_effects_nor_interactions(
    seeds, reps, record_property
):
    rng, found = np.random.default_rng(51), []
    for _ in range(reps):
        y = null_ablation(rng, seeds)
        estimates = [crossed_t(compare(weighted_sum(effect.weights, y))) for effect in EFFECTS]
        questions = [Question(references=(one,)) for one in estimates]
        answers = judge_groups(questions, ORDERS, Correction.HOLM)
        found.append((alarm(answers[:3]), alarm(answers[3:])))
    main, two_way = np.mean(found, axis=0)
    record_property("main_effects", float(main))
    record_property("two_way", float(two_way))
    assert max(main, two_way) <= 0.05 + 2 * monte_carlo_se(0.05, reps)


def test_the_null_suites_are_what_they_claim_to_be():
    suite = null_suite(np.random.default_rng(61), seeds=40, shared_runs=False)
    for (y, images), task in zip(suite, SUITE, strict=True):
        assert y.shape == (METHODS, 40, task.images * task.questions)
        assert len(np.unique(images)) == task.images
        assert y.mean() == pytest.approx(task.accuracy, abs=0.05)
    assert np.array_equal(np.unique(suite[2][1]), np.unique(suite[3][1]))
    agreement = [np.mean(suite[2][0][m] == suite[2][0][8]) for m in (1, 7)]
    assert agreement[1] > agreement[0] + 0.1
