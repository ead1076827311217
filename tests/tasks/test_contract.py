"""What `validate` refuses, in which words, and what `data_hash` depends on."""

from dataclasses import replace

import numpy as np
import pytest

from fusionbench.api.tasks import Split, TaskData, data_hash, validate


def split(name: str, rows: list[int], **changes: object) -> Split:
    made = Split(
        items=tuple(f"{name}/{row}" for row in rows),
        images=np.array(rows),
        questions=("what is it?",) * len(rows),
        answers=np.array([row % 2 for row in rows]),
    )
    return replace(made, **changes)


def toy(**changes: object) -> TaskData:
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 4, 4, 3), np.uint8)
    made = TaskData(
        images=images,
        answers=("cat", "dog"),
        train=split("train", [0, 1]),
        val=split("val", [2, 3]),
        test=split("test", [4, 5]),
    )
    return replace(made, **changes)


def twins() -> np.ndarray:
    """Images 1 and 4 with equal pixels."""
    images = toy().images.copy()
    images[4] = images[1]
    return images


def complaint(data) -> str:
    """What `validate` has against it; empty: nothing."""
    try:
        validate(data)
    except ValueError as error:
        return str(error)
    return ""


def test_a_sound_task_is_accepted():
    assert complaint(toy()) == ""


def test_two_questions_about_one_image_are_accepted_within_a_split():
    assert complaint(toy(train=split("train", [0, 1], images=np.array([0, 0])))) == ""
    # The same image in two splits is what the rule is about.
    assert "image 0 in train and in val" in complaint(toy(val=split("val", [0, 3])))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": toy().images.astype(np.float32)}, "uint8 .* got float32"),
        ({"images": toy().images[..., :1]}, r"got uint8 \[6, 4, 4, 1\]"),
        ({"answers": ("cat", "cat")}, "different texts"),
        ({"answers": ("cat",)}, "at least two"),
        ({"val": split("val", [])}, "val has no example"),
        ({"val": split("train", [2, 3], items=("train/0", "val/3"))}, "first is 'train/0'"),
        ({"val": split("val", [1, 2])}, "image 1 in train and in val"),
        ({"images": twins()}, "images 1 and 4, equal pixels, in train and in test"),
        ({"val": split("val", [2, 6])}, "val: images must lie in 0..5, got 6"),
        ({"val": split("val", [2, 3], answers=np.array([0, 2]))}, "in 0..1, got 2"),
        ({"val": split("val", [2, 3], answers=np.array([-1, 0]))}, "in 0..1, got -1"),
        ({"val": split("val", [2, 3], answers=np.array([0.0, 1.0]))}, "integers .* float64"),
        ({"val": split("val", [2, 3], questions=("one",))}, "differ in length"),
        ({"val": split("val", [2, 3], questions=("one", ""))}, "example 1 has no question"),
    ],
)
def test_what_breaks_the_contract_is_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        validate(toy(**changes))


def test_equal_data_has_equal_hashes_whatever_its_memory_looks_like():
    strided = np.repeat(toy().images, 2, axis=0)[::2]
    narrow = split("val", [2, 3], answers=np.array([0, 1], dtype=np.int8))
    assert data_hash(toy(images=strided, val=narrow)) == data_hash(toy())


@pytest.mark.parametrize(
    "changes",
    [
        {"images": toy().images + np.uint8(1)},
        {"answers": ("dog", "cat")},
        {"test": split("test", [5, 4])},
        {"test": split("test", [4, 5], questions=("who is it?", "what is it?"))},
        {"test": split("test", [4, 5], answers=np.array([1, 1]))},
        {"test": split("test", [4, 5], images=np.array([4, 4]))},
        {"val": split("test", [4, 5]), "test": split("val", [2, 3])},
    ],
)
def test_every_part_of_the_data_is_in_its_hash(changes):
    assert data_hash(toy(**changes)) != data_hash(toy())


def test_the_hash_of_the_toy_is_what_it_always_was():
    assert data_hash(toy()) == "51f697bac1f06e8e6a179b0658e68170a443b1ead4e9d3fab0b6bb807977e176"
