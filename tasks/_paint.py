"""One painter for each skill: from random draws and the wanted answer to a scene and its question.

The answer is chosen first and all else is drawn, so that answers are balanced and neither the
question nor the image alone gives more away than it must.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from fusionbench.tasks._glyphs import word_mask
from fusionbench.tasks._raster import (
    COLOURS,
    SHAPES,
    SIDE,
    background,
    cells,
    jitter,
    pick,
    stamp_faintly,
    stamp_shape,
)

Scene = tuple[np.ndarray, str]
"""Image and question."""
HUES = tuple(COLOURS)


@dataclass(frozen=True, kw_only=True)
class Painter:
    """A skill: its answers, and how a scene with one of them is painted."""

    answers: tuple[str, ...]
    paint: Callable[[np.random.Generator, int], Scene]


WORDS = ("CAR", "CAT", "EAR", "EAT")
COUNTS = ("1", "2", "3", "4")
TEXTURES = ("stripes", "checks", "dots", "bricks")
TILTS = ("horizontal", "rising", "vertical", "falling")
SIDES = ("left", "right", "above", "below")


def paint_text(draws: np.random.Generator, answer: int) -> Scene:
    """A word in print of 14 pixels near the centre, dark or light, half faint to clear."""
    image = background(draws)
    mask = word_mask(WORDS[answer], 2)
    slip = draws.integers(-6, 7, 2)
    ink = int(draws.integers(0, 2)) * 215 + 20
    top, left = ((SIDE - side) // 2 + int(s) for side, s in zip(mask.shape, slip, strict=True))
    strength = int(draws.integers(6, 17))
    stamp_faintly(image, mask, (top, left), colour=(ink, ink, ink), strength=strength)
    return image, "which word is written?"


def paint_small_text(draws: np.random.Generator, answer: int) -> Scene:
    """A word in print of 7 pixels, dark or light, faint or clear, anywhere: for pretraining."""
    image = background(draws)
    mask = word_mask(WORDS[answer], 1)
    corner = draws.integers(2, (SIDE - 1 - mask.shape[0], SIDE - 1 - mask.shape[1]))
    ink = int(draws.integers(0, 2)) * 215 + 20
    place, strength = (int(corner[0]), int(corner[1])), int(draws.integers(3, 17))
    stamp_faintly(image, mask, place, colour=(ink, ink, ink), strength=strength)
    return image, "which word is written?"


def paint_count(draws: np.random.Generator, answer: int) -> Scene:
    """One to four shapes of any size and colour that do not touch."""
    image = background(draws)
    for centre in cells(draws, answer + 1, across=3):
        shape, hue = SHAPES[draws.integers(0, 3)], HUES[draws.integers(0, 4)]
        size = int(draws.integers(7, 16))
        stamp_shape(image, shape, size, centre=jitter(draws, centre, 2), colour=hue)
    return image, "how many shapes are there?"


def paint_texture(draws: np.random.Generator, answer: int) -> Scene:
    """One texture all over, from invisible to clear."""
    image = background(draws)
    period, turn = int(draws.integers(6, 13)), int(draws.integers(0, 2))
    shift = draws.integers(0, period, 2)
    rows, columns = np.ogrid[shift[0] : SIDE + shift[0], shift[1] : SIDE + shift[1]]
    if turn:
        rows, columns = columns, rows
    half = period // 2
    ink = (
        (rows % period < half) | (columns < 0),
        (rows % period < half) ^ (columns % period < half),
        (rows % period < half) & (columns % period < half),
        (rows % period < 2) | ((columns + rows // period % 2 * half) % period < 2),
    )[answer]
    hue, strength = HUES[draws.integers(0, 4)], int(draws.integers(0, 17))
    stamp_faintly(image, ink, (0, 0), colour=COLOURS[hue], strength=strength)
    return image, "which texture is this?"


def paint_tiny_color(draws: np.random.Generator, answer: int) -> Scene:
    """Two small shapes of different colours; the question names one of them."""
    image = background(draws)
    asked, other = pick(draws, SHAPES, 2)
    hue_other = pick(draws, tuple(hue for hue in HUES if hue != HUES[answer]), 1)[0]
    spots = cells(draws, 2, across=3)
    for spot, shape, hue in zip(spots, (asked, other), (HUES[answer], hue_other), strict=True):
        stamp_shape(image, shape, 8, centre=jitter(draws, spot, 5), colour=hue)
    return image, f"what colour is the small {asked}?"


def paint_relation(draws: np.random.Generator, answer: int) -> Scene:
    """Two shapes side by side or one above the other; the question names them differently."""
    image = background(draws)
    one, two = pick(draws, SHAPES, 2)
    hue_one, hue_two = pick(draws, HUES, 2)
    gap, slip = int(draws.integers(20, 37)), int(draws.integers(-5, 6))
    along = -gap if SIDES[answer] in ("left", "above") else gap
    step = (slip, along) if SIDES[answer] in ("left", "right") else (along, slip)
    # Both centres stay 9 pixels away from the border.
    start = [int(draws.integers(max(9, 9 - move), min(55, 55 - move) + 1)) for move in step]
    end = (start[0] + step[0], start[1] + step[1])
    sizes = draws.integers(11, 17, 2)
    stamp_shape(image, two, int(sizes[1]), centre=(start[0], start[1]), colour=hue_two)
    stamp_shape(image, one, int(sizes[0]), centre=end, colour=hue_one)
    return image, f"on which side of the {two} is the {hue_one} shape?"


def paint_exists(draws: np.random.Generator, answer: int, *, count: int = 2) -> Scene:
    """Is a coloured shape among `count`? Answer 0 is yes.

    After POPE (Li et al., EMNLP 2023): some kinds of objects are popular, in scenes and questions
    alike. Half of the scenes are adversarial: a no has the colour and the shape, but apart, and a
    yes has the same two colours and shapes, so that neither is of use on its own.
    """
    image = background(draws)
    hue, shape = _popular(draws)
    other_hue = pick(draws, tuple(name for name in HUES if name != hue), 1)[0]
    other_shape = pick(draws, tuple(name for name in SHAPES if name != shape), 1)[0]
    things = [(hue, shape)] if answer == 0 else []
    if bool(draws.integers(0, 2)):
        apart = [(hue, other_shape), (other_hue, shape)]
        things = [*things, (other_hue, other_shape)] if answer == 0 else apart
    while len(things) < count:
        thing = _popular(draws)
        if thing != (hue, shape):
            things.append(thing)
    for thing, centre in zip(things, cells(draws, count, across=3), strict=True):
        size = int(draws.integers(11, 17))
        stamp_shape(image, thing[1], size, centre=jitter(draws, centre, 2), colour=thing[0])
    return image, f"is there a {hue} {shape}?"


def _popular(draws: np.random.Generator) -> tuple[str, str]:
    """A colour and a shape; low numbers are three times as frequent as high ones."""
    hue, shape = HUES[min(draws.integers(0, 4, 2))], SHAPES[min(draws.integers(0, 3, 2))]
    return hue, shape


def paint_orientation(draws: np.random.Generator, answer: int) -> Scene:
    """Lines all over in one of four directions, from invisible to clear, under two discs."""
    image = background(draws)
    hues = pick(draws, HUES, 3)
    period = int(draws.integers(6, 13))
    rows, columns = np.ogrid[:SIDE, :SIDE]
    across = (rows + 0 * columns, rows + columns, columns + 0 * rows, rows - columns)[answer]
    # 7 / 5 is the square root of 2: slanted lines are as far apart as straight ones.
    period = period * 7 // 5 if answer % 2 else period
    ink = (across + int(draws.integers(0, period))) % period < period // 2
    strength = int(draws.integers(0, 17))
    stamp_faintly(image, ink, (0, 0), colour=COLOURS[hues[2]], strength=strength)
    for spot, hue in zip(cells(draws, 2, across=3), hues, strict=False):
        size = int(draws.integers(9, 15))
        stamp_shape(image, "circle", size, centre=jitter(draws, spot, 2), colour=hue)
    return image, "which way do the lines run?"


PAINTERS: Mapping[str, Painter] = {
    "scenes_text": Painter(answers=WORDS, paint=paint_text),
    "scenes_count": Painter(answers=COUNTS, paint=paint_count),
    "scenes_texture": Painter(answers=TEXTURES, paint=paint_texture),
    "scenes_tiny_color": Painter(answers=HUES, paint=paint_tiny_color),
    "scenes_relation": Painter(answers=SIDES, paint=paint_relation),
    "scenes_exists": Painter(answers=("yes", "no"), paint=paint_exists),
    "scenes_orientation": Painter(answers=TILTS, paint=paint_orientation),
}
"""By task."""
PRETRAINING: Mapping[str, Painter] = {
    **PAINTERS,
    "scenes_text": Painter(answers=WORDS, paint=paint_small_text),
    "scenes_exists": Painter(answers=("yes", "no"), paint=partial(paint_exists, count=3)),
}
"""The scenes that `nano` was pretrained on: first versions of two tasks, too hard to read."""
