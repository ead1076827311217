"""The built-in tasks keep their promises: chance, balance, fair fronts, fixed pixels."""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from fusionbench.api.tasks import SPLITS, Split, TaskData, data_hash, validate
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task
from fusionbench.study.study import QUICK

# A change here changes every result on the task: its version must go up with it.
GOLDEN = {
    "animal_mnist": (1, "60e7323f2d270bc7989cea01eed4bdd3832b69d1346078202091705c3fddb9f8"),
    "digits": (2, "7a4ab4535fd51350ba5548ce57f7dc43e7b9200d1465fc60cd8092bcdf5d19b1"),
    "easy_vqa": (1, "265a1f814a14fa5d37ec443406660d598b8b8c3ff7baaf10cbc32f5a7703438f"),
    "elpv": (1, "16e2fce21bca1340553a53f9ccd41589e2bea158a31c284bf16431ee7f05b4c4"),
    "planted_feedback": (1, "b600b24017242af50241a67e1ee57e33280af4ef0908fb8f796409c6cebf633b"),
    "planted_layer": (1, "9a8e3681b7b51712389d2dcbf587d482af30f5e00995bf0f34307767dbb2bc11"),
    "planted_pair": (1, "dc91d00f6ddc2b6aca1439eec14e47099c88aac9b6d9b5bfa71aa1592c9de7ac"),
    "planted_random": (1, "c0caccd91a89e26cf20759aac6533463d7d6a9b8a2f474dac1aee28c6a8e4673"),
    "scenes_count": (2, "2dbf7ac6b8f8c6c85534678a2992cc23f1ad6840251c549dd75350d368e83411"),
    "scenes_exists": (2, "f5531e830400626c39d9d8ca83b8fbbd79221bab820eaac992ef5ccfb957e454"),
    "scenes_orientation": (2, "f1e3e9f7d50079aeb77381684ba075beea63a4090b071bbbb63bf6baa1ade219"),
    "scenes_relation": (2, "cead0b211772ac608893a90d2e51d6c26a77017b394cbc61d6fe2b1c1c8c437f"),
    "scenes_text": (2, "cd1a02dced6fc874e2531a3741e0b4195191159549470ffaf6b0c83c409c1b3d"),
    "scenes_texture": (2, "681f4dce3039f2fbd6af4cf4ee97aeee104c0098b4006f39410fa38fdde7ea47"),
    "scenes_tiny_color": (2, "29a40603566f503ff5aa14970b5d02f850aa80976db41d86a59ef493e3c92279"),
    "textile": (1, "d892faaaf200a99e920e7bcc1a979cfe45493b21499f7eca5111889f92473085"),
}

CARDS = {name: card for name, card in read_catalog().tasks.items() if name in GOLDEN}
AVAILABLE = [name for name, card in CARDS.items() if card.available]
# easy-VQA asks for colours, shapes and yes or no: its thirteen answers cannot be equally frequent.
BALANCED = [name for name in AVAILABLE if name != "easy_vqa"]
CUTS = {
    # Smaller pools than `train_items` are used whole; a seed draws this many of them.
    "train": QUICK.budget.draw,
    "val": QUICK.budget.val_items,
    "test": QUICK.budget.test_items,
}

LOADER = """
import json, sys
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task
from fusionbench.api.tasks import data_hash
cards = read_catalog().tasks
hashes = {name: data_hash(load_task(cards[name]).load()) for name in sys.argv[1:]}
heavy = [m for m in ("torch", "pandas", "scipy", "sklearn", "tensorflow") if m in sys.modules]
print(json.dumps([hashes, heavy]))
"""


@cache
def data(name: str) -> TaskData:
    return load_task(CARDS[name]).load()


def shares(split: Split, answers: int) -> np.ndarray:
    return np.bincount(split.answers, minlength=answers) / len(split)


def test_every_task_of_this_repository_has_a_golden_hash():
    assert set(GOLDEN) == {c.name for c in read_catalog().tasks.values() if c.source == "built-in"}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", AVAILABLE)
def test_the_data_is_sound_and_never_changes(name):
    validate(data(name))
    version, golden = GOLDEN[name]
    assert CARDS[name].version == version
    assert data_hash(data(name)) == golden


@pytest.mark.thorough
def test_another_process_loads_the_same_bytes_without_any_heavy_library():
    names = [n for n in ("digits", "animal_mnist", "scenes_text", "planted_pair") if n in AVAILABLE]
    run = subprocess.run(
        [sys.executable, "-c", LOADER, *names], capture_output=True, text=True, check=True
    )
    hashes, heavy = json.loads(run.stdout)
    assert heavy == []
    assert hashes == {name: GOLDEN[name][1] for name in names}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", AVAILABLE)
def test_chance_is_what_a_guesser_gets_who_never_looks(name):
    """Such a guesser knows how often each answer to each question is right in training."""
    known: dict[str, Counter[int]] = defaultdict(Counter)
    for question, answer in zip(data(name).train.questions, data(name).train.answers, strict=True):
        known[question][int(answer)] += 1
    test = data(name).test
    guesses = np.array([known[question].most_common(1)[0][0] for question in test.questions])
    score = load_task(CARDS[name]).score(guesses, test.answers).mean()
    assert score == pytest.approx(load_task(CARDS[name]).chance, abs=0.025)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", BALANCED)
def test_answers_are_equally_frequent_in_every_split(name):
    answers = len(data(name).answers)
    for split in SPLITS:
        assert np.ptp(shares(data(name).split(split), answers)) < 0.01


@pytest.mark.few(1)
@pytest.mark.parametrize("name", AVAILABLE)
def test_the_front_of_a_split_is_a_fair_smaller_split(name):
    answers = len(data(name).answers)
    for split_name in SPLITS:
        whole = data(name).split(split_name)
        front = Split(
            **{
                field: getattr(whole, field)[: CUTS[split_name]]
                for field in ("items", "images", "questions", "answers")
            }
        )
        assert abs(shares(front, answers) - shares(whole, answers)).max() < 0.02
        asked, all_asked = Counter(front.questions), Counter(whole.questions)
        for question, count in all_asked.items():
            expected = count / len(whole)
            spread = np.sqrt(expected * (1 - expected) / len(front))
            assert abs(asked[question] / len(front) - expected) < 5 * spread + 1e-9


@pytest.mark.few(1)
@pytest.mark.parametrize("name", AVAILABLE)
def test_every_split_is_large_enough_for_the_quick_study(name):
    for split, size in CUTS.items():
        assert len(data(name).split(split)) >= size


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.needs])
def test_a_missing_package_is_named_with_the_command_that_brings_it(name, monkeypatch):
    monkeypatch.setattr("fusionbench.tasks._sources.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError) as error:
        load_task(CARDS[name]).load()
    assert CARDS[name].get in str(error.value)
    assert CARDS[name].needs[0] in str(error.value)


@pytest.mark.thorough
def test_no_task_of_the_suite_shares_an_image_with_another():
    home: dict[bytes, str] = {}
    for name in AVAILABLE:
        images = data(name).images
        for pixels in {image.tobytes() for image in images[:: max(1, len(images) // 500)]}:
            assert home.setdefault(pixels, name) == name


# What `validate` refuses, in which words, and what `data_hash` depends on.


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
        ({"val": split("val", [2, 3], questions=("one", " \t"))}, "example 1 has no question"),
        ({"answers": ("cat", " ")}, "an answer is an empty text"),
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


# The answer of a scene is true of its pixels, as measured by other means than the painter's.

# Colours and tasks are looked up by name: tests reach tasks through the registry alone.
HUES = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (230, 205, 40),
}
LOOKED_AT = 100


@cache
def scenes_data(name: str) -> TaskData:
    return load_task(read_catalog().tasks[name]).load()


def examples(name: str) -> list[tuple[np.ndarray, str, str]]:
    found = scenes_data(name)
    return [
        (found.images[row], question, found.answers[answer])
        for row, question, answer in zip(
            found.test.images[:LOOKED_AT],
            found.test.questions,
            found.test.answers,
            strict=False,
        )
    ]


def things(image: np.ndarray) -> list[tuple[str, str, np.ndarray, int]]:
    """Colour, shape, middle and pixels of everything that is not grey."""
    found = []
    for hue, colour in HUES.items():
        labels, count = ndimage.label((image == colour).all(axis=-1))
        for index in range(1, count + 1):
            inked = np.argwhere(labels == index)
            found.append((hue, shape_of(inked), inked.mean(axis=0), len(inked)))
    return found


def shape_of(inked: np.ndarray) -> str:
    """By the share of its bounding box that a shape fills: 1, pi / 4 or 1 / 2."""
    box = np.prod(np.ptp(inked, axis=0) + 1)
    share = len(inked) / box
    return "square" if share > 0.95 else "circle" if share > 0.66 else "triangle"


@pytest.mark.thorough
def test_as_many_things_are_there_as_the_answer_says():
    for image, _, answer in examples("scenes_count"):
        assert len(things(image)) == int(answer)


@pytest.mark.thorough
def test_the_small_thing_that_is_asked_for_has_the_colour_of_the_answer():
    for image, question, answer in examples("scenes_tiny_color"):
        found = things(image)
        assert max(pixels for _, _, _, pixels in found) <= 64
        assert len({hue for hue, _, _, _ in found}) == 2
        (asked,) = [hue for hue, shape, _, _ in found if shape == question.split()[-1][:-1]]
        assert asked == answer


@pytest.mark.thorough
def test_one_thing_lies_on_the_named_side_of_the_other():
    for image, question, answer in examples("scenes_relation"):
        words = question.rstrip("?").split()
        found = things(image)
        (start,) = [middle for _, shape, middle, _ in found if shape == words[5]]
        (end,) = [middle for hue, _, middle, _ in found if hue == words[8]]
        down, right = end - start
        sides = {"left": -right, "right": right, "above": -down, "below": down}
        assert max(sides, key=lambda side: sides[side]) == answer


@pytest.mark.thorough
def test_a_thing_is_there_exactly_if_the_answer_is_yes():
    for image, question, answer in examples("scenes_exists"):
        hue, shape = question.rstrip("?").split()[-2:]
        there = {(hue, shape) for hue, shape, _, _ in things(image)}
        assert ((hue, shape) in there) == (answer == "yes")


@pytest.mark.thorough
def test_half_of_the_noes_have_the_colour_and_the_shape_but_apart():
    apart = []
    for image, question, answer in examples("scenes_exists"):
        hue, shape = question.rstrip("?").split()[-2:]
        found = things(image)
        if answer == "no":
            has_hue = hue in {thing[0] for thing in found}
            apart.append(has_hue and shape in {thing[1] for thing in found})
    assert np.mean(apart) > 0.45


def pattern(image: np.ndarray) -> np.ndarray | None:
    """Where the lines or the texture are; None if they are invisible (discs cover too little).

    The background is exactly grey, so that any colour is ink.
    """
    ink = np.ptp(image.astype(int), axis=-1) > 0
    return ink if ink.mean() > 0.15 else None


def lines_along(ink: np.ndarray, move: tuple[int, int]) -> float:
    """Share of the pixels that equal their neighbour at `move` (rows down, columns right)."""
    down, right = move
    here = ink[max(0, -down) : 64 - max(0, down), : 64 - right]
    there = ink[max(0, down) : 64 - max(0, -down), right:]
    return float((here == there).mean())


@pytest.mark.thorough
def test_the_lines_run_as_the_answer_says():
    moves = {"horizontal": (0, 1), "rising": (-1, 1), "vertical": (1, 0), "falling": (1, 1)}
    seen = 0
    for image, _, answer in examples("scenes_orientation"):
        ink = pattern(image)
        if ink is not None:
            seen += 1
            assert max(moves, key=lambda tilt: lines_along(ink, moves[tilt])) == answer
    assert seen > 0.8 * LOOKED_AT


@pytest.mark.slow
def test_some_lines_and_textures_are_invisible_so_that_nobody_can_be_perfect():
    for name in ("scenes_orientation", "scenes_texture"):
        hidden = [pattern(image) is None for image, _, _ in examples(name)]
        assert 0.01 < np.mean(hidden) < 0.15


@pytest.mark.thorough
def test_clear_words_differ_and_are_the_same_wherever_they_stand():
    patterns: dict[str, set[bytes]] = {}
    for image, _, answer in examples("scenes_text"):
        level = np.median(image[..., 0])
        far = np.abs(image[..., 0] - level)
        if far.max() < 60:
            continue
        rows, columns = np.nonzero(far > 30)
        cut = (far > 30)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert cut.shape[0] == 14
        patterns.setdefault(answer, set()).add(cut.tobytes())
    assert all(len(found) == 1 for found in patterns.values())
    assert len(set.union(*patterns.values())) == len(scenes_data("scenes_text").answers)


@pytest.mark.thorough
def test_a_texture_is_the_same_along_lines_exactly_if_it_is_stripes():
    for image, _, answer in examples("scenes_texture"):
        ink = pattern(image)
        if ink is not None:
            along = max(lines_along(ink, (0, 1)), lines_along(ink, (1, 0)))
            assert (along == 1) == (answer == "stripes")


@pytest.mark.thorough
def test_textures_cover_different_shares_of_the_image():
    """Checks cover about one half, dots about a quarter."""
    shares: dict[str, list[float]] = {}
    for image, _, answer in examples("scenes_texture"):
        ink = pattern(image)
        if ink is not None:
            shares.setdefault(answer, []).append(float(ink.mean()))
    assert max(shares["dots"]) < 0.32
    assert min(shares["checks"]) > 0.45


@pytest.mark.thorough
def test_images_for_pretraining_are_diverse_repeatable_and_in_no_task():
    module = sys.modules[type(load_task(read_catalog().tasks["scenes_text"])).__module__]
    extra = module.extra_images(140, seed=1)
    assert extra.shape == (140, 64, 64, 3)
    assert extra.dtype == np.uint8
    assert np.array_equal(extra[:7], module.extra_images(7, seed=1))
    assert not np.array_equal(extra[:7], module.extra_images(7, seed=2))
    seen = {image.tobytes() for image in extra}
    assert len(seen) == 140
    names = [name for name in read_catalog().tasks if name.startswith("scenes_")]
    for name in names:
        assert not seen & {image.tobytes() for image in scenes_data(name).images}


@pytest.mark.thorough
def test_a_larger_pool_would_keep_the_images_of_a_smaller_one(monkeypatch):
    small = scenes_data("scenes_text")
    task = load_task(read_catalog().tasks["scenes_text"])
    monkeypatch.setitem(sys.modules[type(task).__module__]._SIZES, "train", 4100)
    grown = task.load()
    assert np.array_equal(grown.images[:4096], small.images[:4096])
    assert grown.train.items[:4096] == small.train.items
