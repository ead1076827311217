"""The bootstrap draws images, the same for both methods, and agrees with a plain loop."""

import numpy as np
import pytest

from fusionbench.api.errors import UserError
from fusionbench.metrics import bootstrap, mmbench, mme, pope, tallies
from fusionbench.metrics.bootstrap import paired, paired_measures

RANDOM = np.random.default_rng(0)


def pope_answers(right: float, images: int = 12, seed: int = 0):
    """Six questions an image, two in each category; `right` is the share of right answers."""
    random = np.random.default_rng(seed)
    return [
        pope.Answer(
            category=category,
            label=label,
            prediction=label if random.random() < right else {"yes": "no", "no": "yes"}[label],
        )
        for _ in range(images)
        for category in pope.CATEGORIES
        for label in ("yes", "no")
    ]


def mme_answers(right: float, images: int = 6, seed: int = 0):
    random = np.random.default_rng(seed)
    return [
        mme.Answer(
            task=task,
            image=f"{task} {image}",
            label=label,
            prediction=label if random.random() < right else "other",
        )
        for image in range(images)
        for task in (*mme.PERCEPTION, *mme.COGNITION)
        for label in ("Yes", "No")
    ]


def mmbench_answers(right: float, questions: int = 12, seed: int = 0):
    random = np.random.default_rng(seed)
    return [
        mmbench.Answer(
            index=index + rotation * mmbench.ROTATION,
            options=("cat", "dog", "cow"),
            answer="ABC"[rotation],
            prediction="ABC"[rotation] if random.random() < right else "Z",
        )
        for rotation in range(3)
        for index in range(questions)
    ]


POPE_IMAGES = [str(i // 6) for i in range(72)]
MME_IMAGES = [str(i // 28) for i in range(168)]
MMBENCH_IMAGES = [str(i % 12) for i in range(36)]
KINDS = {
    "pope": (pope_answers, POPE_IMAGES, pope.measures, tallies.pope_tally),
    "mme": (mme_answers, MME_IMAGES, mme.measures, tallies.mme_tally),
    "mmbench": (mmbench_answers, MMBENCH_IMAGES, mmbench.measures, tallies.mmbench_tally),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_of_a_tally_give_the_measures(kind):
    make, _, measures, tally = KINDS[kind]
    found = measures(make(0.7))
    for name, value in tally(make(0.7)).now().items():
        assert value == pytest.approx(found[name], abs=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
def test_resampled_sums_give_the_measures_of_resampled_answers(kind):
    make, images, measures, tally = KINDS[kind]
    first, second = make(0.8, seed=1), make(0.6, seed=2)
    fast = paired([tally(first)], [tally(second)], images, draws=40, seed=3)
    slow = paired_measures(measures, first, second, images, draws=40, seed=3)
    assert fast.keys() <= slow.keys()
    for name, value in fast.items():
        plain = slow[name]
        assert value.draws == plain.draws == 40
        for part in ("estimate", "low", "high", "p"):
            assert getattr(value, part) == pytest.approx(getattr(plain, part), abs=1e-12), name


def test_an_image_comes_with_all_of_its_questions():
    answers = list(range(6))
    images = ["a", "b", "a", "c", "b", "c"]
    seen = []

    def measures(drawn):
        seen.append(tuple(drawn))
        return {"sum": float(sum(drawn))}

    paired_measures(measures, answers, answers, images, draws=20)
    # Two calls with the answers as they came, two with each image once, two for each draw.
    assert seen[2:4] == [(0, 2, 1, 4, 3, 5)] * 2 and len(seen) == 4 + 2 * 20
    for one, other in zip(seen[4::2], seen[5::2], strict=True):
        assert one == other and len(one) == 6
        blocks = {one[i : i + 2] for i in range(0, 6, 2)}
        assert blocks <= {(0, 2), (1, 4), (3, 5)}


def test_equal_methods_do_not_differ_and_a_seed_repeats():
    tally = tallies.pope_tally(pope_answers(0.7))
    same = paired([tally], [tally], POPE_IMAGES, draws=50)["f1_mean"]
    assert (same.estimate, same.low, same.high, same.p, same.images) == (0, 0, 0, 1, 12)
    other = tallies.pope_tally(pope_answers(0.5, seed=4))
    once, again, another = (
        paired([tally], [other], POPE_IMAGES, draws=50, seed=seed) for seed in (1, 1, 2)
    )
    assert once == again != another


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    """For a mean over images the bootstrap's spread is known: s / sqrt(n)."""
    images = 400
    values = RANDOM.normal(0.1, 1.0, (images, 1))

    def readings(sums):
        return {"mean": sums[..., 0] / images}

    zero = tallies.Tally(np.zeros((images, 1)), readings)
    names = [str(i) for i in range(images)]
    found = paired([tallies.Tally(values, readings)], [zero], names, draws=4000)["mean"]
    error = values.std() / np.sqrt(images)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)
    z = abs(values.mean()) / error
    assert found.p == pytest.approx(2 * (1 - _normal(z)), abs=0.03)


def _normal(z: float) -> float:
    from math import erf, sqrt

    return (1 + erf(z / sqrt(2))) / 2


def test_the_order_of_the_draws_does_not_depend_on_how_many_are_made():
    few = np.concatenate(list(bootstrap.weights(5, 30, seed=7)))
    many = np.concatenate(list(bootstrap.weights(5, 230, seed=7)))
    assert few.shape == (30, 5) and (few == many[:30]).all()
    assert (many.sum(axis=1) == 5).all()


def test_runs_are_paired_and_averaged():
    runs = [tallies.pope_tally(pope_answers(0.8, seed=s)) for s in range(3)]
    other = [tallies.pope_tally(pope_answers(0.6, seed=s + 9)) for s in range(3)]
    found = paired(runs, other, POPE_IMAGES, draws=30)["f1_pooled"]
    each = [a.now()["f1_pooled"] - b.now()["f1_pooled"] for a, b in zip(runs, other, strict=True)]
    assert found.estimate == pytest.approx(np.mean(each))


def test_a_reading_that_is_undefined_has_no_interval():
    answers = mmbench_answers(0.5)[:12]
    tally = tallies.mmbench_tally(answers)
    found = paired([tally], [tally], MMBENCH_IMAGES[:12], draws=10)["accuracy_circular"]
    assert (found.estimate, found.low, found.p, found.draws) == (None, None, None, 0)
    one_task = tallies.mme_tally(mme_answers(0.5)[:2])
    assert np.isnan(one_task.now()["perception"])


def test_inputs_that_do_not_fit_are_refused():
    tally = tallies.pope_tally(pope_answers(0.7))
    with pytest.raises(UserError, match="1 and 2 runs"):
        paired([tally], [tally, tally], POPE_IMAGES)
    with pytest.raises(UserError, match="72 and 71 answers and groups"):
        paired([tally], [tally], POPE_IMAGES[1:])
    with pytest.raises(UserError, match=r"over 1 image"):
        paired([tally], [tally], ["a"] * 72)
    with pytest.raises(UserError, match="2 and 1 answers"):
        paired_measures(lambda _: {}, [1, 2], [1], ["a", "b"])
