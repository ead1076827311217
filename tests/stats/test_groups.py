"""The image is the unit, within a task and across tasks."""

import numpy as np
import pytest

from fusionbench.stats.crossed import compare, crossed_t, two_way
from fusionbench.stats.groups import TaskScores, by_group, merge, refuse_wrong_groups


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
