"""Metrics that are no means: blocks, pseudo-values, and how often the interval holds the truth."""

from dataclasses import dataclass

import numpy as np
import pytest

from fusionbench.api.tasks import ScoredItems
from fusionbench.stats.cells import BLOCKS, blocks, mean_score, metric_interval, named_metrics


@dataclass(frozen=True)
class Plain:
    """Examples with a true label each."""

    groups: tuple[str, ...]
    positive: np.ndarray

    def pick(self, rows):
        return Plain(tuple(self.groups[row] for row in rows), self.positive[rows])


def f1(outcomes, items):
    hit = float((outcomes * items.positive).sum())
    wrong = float((1 - outcomes).sum())
    return {"accuracy": float(outcomes.mean()), "f1": 2 * hit / max(2 * hit + wrong, 1e-9)}


def test_blocks_hold_complete_groups_of_nearly_equal_number():
    groups = [f"image-{number // 3}" for number in range(402)]
    found = blocks(groups)
    assert set(found) == set(range(BLOCKS))
    assert all(len({found[3 * g], found[3 * g + 1], found[3 * g + 2]}) == 1 for g in range(134))
    assert np.ptp(np.bincount(found)) <= 3
    assert len(set(blocks(["a", "b", "a"]))) == 2


def test_the_headline_metric_has_no_second_part_and_others_one_value_a_block():
    rng = np.random.default_rng(0)
    items = Plain(tuple(map(str, range(200))), rng.integers(0, 2, 200))
    values, left_out = named_metrics(f1, rng.integers(0, 2, 200), items, "accuracy")
    assert set(values) == {"accuracy", "f1"} and list(left_out) == ["f1"]
    assert len(left_out["f1"]) == BLOCKS
    assert named_metrics(lambda o, i: {"accuracy": 0.5}, np.ones(9), items, "accuracy")[1] == {}


def test_pseudo_values_of_a_mean_over_equal_blocks_are_the_block_means():
    rng = np.random.default_rng(1)
    outcomes = rng.random((5, 40))
    means = outcomes.reshape(5, 10, 4).mean(axis=-1)
    left_out = (means.sum(axis=1, keepdims=True) - means) / 9
    found = metric_interval(means.mean(axis=1), left_out)
    expected = mean_score(means, np.arange(10))
    assert np.allclose([found.low, found.high], [expected.low, expected.high])


def test_a_metric_that_never_varies_has_an_interval_too():
    found = metric_interval(np.zeros(5), np.zeros((5, BLOCKS)))
    assert found.low == found.mean == 0 and 0.02 < found.high < 0.15


@pytest.mark.parametrize("wrong", [float("nan"), 1.5, -0.1])
def test_a_value_outside_0_to_1_is_refused(wrong):
    items = Plain(("a", "b"), np.ones(2))
    with pytest.raises(ValueError, match="f1 must be between 0 and 1"):
        named_metrics(lambda o, i: {"f1": wrong}, np.ones(2), items, "accuracy")


def test_the_interval_of_an_f1_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    seeds, images, studies = 5, 150, 300

    def study(images):
        positive = rng.random(images) < 0.4
        image = rng.normal(0, 0.8, images)
        run = rng.normal(0, 0.1, (seeds, 1))
        noise = rng.normal(0, 0.6, (seeds, images))
        right = (0.4 + 0.4 * positive + image + run + noise > 0).astype(float)
        return positive, right

    positive, right = study(400_000)
    items = Plain((), positive)
    truth = np.mean([f1(row, items)["f1"] for row in right])
    names = tuple(map(str, range(images)))
    block = blocks(names)
    kept = np.array([block != left for left in range(BLOCKS)]).T.astype(float)
    covered = 0
    for _ in range(studies):
        positive, right = study(images)
        hit, wrong = (right * positive) @ kept, (1 - right) @ kept
        values = np.array([f1(row, Plain(names, positive))["f1"] for row in right])
        found = metric_interval(values, 2 * hit / (2 * hit + wrong))
        covered += bool(found.low <= truth <= found.high)
    # Two standard errors of a share of 0.95 in 300 studies are 0.025.
    assert 0.92 <= covered / studies <= 0.99


def test_scored_items_are_such_examples():
    items = ScoredItems(names=("x", "y"), groups=("a", "b"), questions=("q", "q"),
                        answers=("yes", "no"))  # fmt: skip
    assert items.pick(np.array([1])).answers == ("no",) and items[0].answer == "yes"
