"""The answer of a scene is true of its pixels, as measured by other means than the painter's."""

import sys
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from fusionbench.api.tasks import TaskData
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_task

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
        assert max(pixels for _, _, _, pixels in found) <= 64
        assert len({hue for hue, _, _, _ in found}) == 2
        (asked,) = [hue for hue, shape, _, _ in found if shape == question.split()[-1][:-1]]
        assert asked == answer


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
    assert len(set.union(*patterns.values())) == len(data("scenes_text").answers)


def test_a_texture_is_the_same_along_lines_exactly_if_it_is_stripes():
    for image, _, answer in examples("scenes_texture"):
        ink = pattern(image)
        if ink is not None:
            along = max(lines_along(ink, (0, 1)), lines_along(ink, (1, 0)))
            assert (along == 1) == (answer == "stripes")


def test_textures_cover_different_shares_of_the_image():
    """Checks cover about one half, dots about a quarter."""
    shares: dict[str, list[float]] = {}
    for image, _, answer in examples("scenes_texture"):
        ink = pattern(image)
        if ink is not None:
            shares.setdefault(answer, []).append(float(ink.mean()))
    assert max(shares["dots"]) < 0.32
    assert min(shares["checks"]) > 0.45


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
    small = data("scenes_text")
    task = load_task(read_catalog().tasks["scenes_text"])
    monkeypatch.setitem(sys.modules[type(task).__module__]._SIZES, "train", 4100)
    grown = task.load()
    assert np.array_equal(grown.images[:4096], small.images[:4096])
    assert grown.train.items[:4096] == small.train.items
