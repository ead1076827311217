"""The answer of a scene is true of its pixels, as measured by other means than the painter's."""

import sys
from functools import cache

import numpy as np
from scipy import ndimage

from fusionbench.catalog import read_catalog
from fusionbench.plugins import load_task
from fusionbench.task import TaskData

# Colours and tasks are looked up by name: tests reach tasks through the registry alone.
HUES = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (230, 205, 40),
}
LOOKED_AT = 100


@cache
def data(name: str) -> TaskData:
    return load_task(read_catalog().tasks[name]).load()


def examples(name: str) -> list[tuple[np.ndarray, str, str]]:
    found = data(name)
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


def test_as_many_things_are_there_as_the_answer_says():
    for image, _, answer in examples("scenes_count"):
        assert len(things(image)) == int(answer)


def test_the_small_thing_that_is_asked_for_has_the_colour_of_the_answer():
    for image, question, answer in examples("scenes_tiny_color"):
        found = things(image)
        small = {shape: hue for hue, shape, _, pixels in found if pixels < 60}
        assert len(found) == 3
        assert len(small) == 2
        assert small[question.split()[-1].rstrip("?")] == answer


def test_one_thing_lies_on_the_named_side_of_the_other():
    for image, question, answer in examples("scenes_relation"):
        words = question.rstrip("?").split()
        found = things(image)
        (start,) = [middle for _, shape, middle, _ in found if shape == words[5]]
        (end,) = [middle for hue, _, middle, _ in found if hue == words[8]]
        down, right = end - start
        sides = {"left": -right, "right": right, "above": -down, "below": down}
        assert max(sides, key=lambda side: sides[side]) == answer


def test_a_thing_is_there_exactly_if_the_answer_is_yes():
    for image, question, answer in examples("scenes_exists"):
        hue, shape = question.rstrip("?").split()[-2:]
        there = {(hue, shape) for hue, shape, _, _ in things(image)}
        assert ((hue, shape) in there) == (answer == "yes")


def test_half_of_the_noes_have_the_colour_and_the_shape_but_apart():
    apart = []
    for image, question, answer in examples("scenes_exists"):
        hue, shape = question.rstrip("?").split()[-2:]
        found = things(image)
        if answer == "no":
            has_hue = hue in {thing[0] for thing in found}
            apart.append(has_hue and shape in {thing[1] for thing in found})
    assert np.mean(apart) > 0.45


def inked(image: np.ndarray) -> np.ndarray:
    """Everything coloured, however faintly: the background is exactly grey."""
    return np.ptp(image.astype(int), axis=-1) > 0


def test_the_bar_runs_as_the_answer_says():
    for image, _, answer in examples("scenes_orientation"):
        labels, count = ndimage.label(inked(image), structure=np.ones((3, 3)))
        slant = []
        for index in range(1, count + 1):
            (rows, both), (_, columns) = np.cov(np.argwhere(labels == index).T)
            slant.append((columns - rows, -2 * both))
        assert count == 3
        east, north = max(slant, key=lambda pair: float(np.hypot(*pair)))
        # The doubled angle of the main axis: 0, 90, 180 and 270 degrees.
        turn = round(np.degrees(np.arctan2(north, east)) / 90) % 4
        assert ("horizontal", "rising", "vertical", "falling")[turn] == answer


def test_clear_words_differ_and_are_the_same_wherever_they_stand():
    patterns: dict[str, set[bytes]] = {}
    for image, _, answer in examples("scenes_text"):
        level = np.median(image[..., 0])
        far = np.abs(image[..., 0] - level)
        if far.max() < 60:
            continue
        rows, columns = np.nonzero(far > 30)
        cut = (far > 30)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert cut.shape[0] == 7
        patterns.setdefault(answer, set()).add(cut.tobytes())
    assert all(len(found) == 1 for found in patterns.values())
    assert len(set.union(*patterns.values())) == len(data("scenes_text").answers)


def test_a_texture_is_the_same_along_lines_exactly_if_it_is_stripes():
    for image, _, answer in examples("scenes_texture"):
        rows, columns = np.nonzero(inked(image))
        patch = inked(image)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        constant = [bool((patch == np.take(patch, [0], axis=axis)).all()) for axis in (0, 1)]
        assert any(constant) == (answer == "stripes")


def test_textures_cover_different_shares_of_their_patch():
    """Checks one half, dots at most a quarter, bricks have thin joints."""
    shares: dict[str, list[float]] = {}
    for image, _, answer in examples("scenes_texture"):
        rows, columns = np.nonzero(inked(image))
        patch = inked(image)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        shares.setdefault(answer, []).append(float(patch.mean()))
    assert max(shares["dots"]) < 0.32
    assert min(shares["checks"]) > 0.4


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
        assert not seen & {image.tobytes() for image in data(name).images}


def test_a_larger_pool_would_keep_the_images_of_a_smaller_one(monkeypatch):
    task = load_task(read_catalog().tasks["scenes_text"])
    monkeypatch.setitem(sys.modules[type(task).__module__]._SIZES, "train", 4100)
    grown = task.load()
    assert np.array_equal(grown.images[:4096], data("scenes_text").images[:4096])
    assert grown.train.items[:4096] == data("scenes_text").train.items
