"""Drawing on 64 x 64 pixels with integers only: no anti-aliasing, no drawing library.

Pixels of a task must never change with a library's version, since the hash of the data is part of
every result's identity.
"""

from functools import cache

import numpy as np

SIDE = 64
Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (230, 205, 40),
}
SHAPES = ("circle", "square", "triangle")


def background(draws: np.random.Generator) -> np.ndarray:
    """Grey of a random level under noise, so that no two images are equal."""
    level = int(draws.integers(85, 156))
    noise = draws.integers(0, 25, (SIDE, SIDE, 1), dtype=np.uint8)
    return np.repeat(noise + np.uint8(level), 3, axis=-1)


def stamp(image: np.ndarray, mask: np.ndarray, corner: tuple[int, int], colour: Colour) -> None:
    """Colour the pixels of `mask`, whose first pixel lies at `corner` (row, column)."""
    stamp_faintly(image, mask, corner, colour=colour, strength=16)


def stamp_faintly(
    image: np.ndarray,
    mask: np.ndarray,
    corner: tuple[int, int],
    *,
    colour: Colour,
    strength: int,
) -> None:
    """Move the pixels of `mask` towards a colour by `strength` sixteenths; noise shows through."""
    row, column = corner
    window = image[row : row + mask.shape[0], column : column + mask.shape[1]]
    below = window[mask].astype(np.int16)
    window[mask] = below + (np.array(colour, dtype=np.int16) - below) * strength // 16


def stamp_shape(
    image: np.ndarray, shape: str, size: int, *, centre: tuple[int, int], colour: str
) -> None:
    """A shape of the palette's colour about a centre (row, column)."""
    corner = (centre[0] - size // 2, centre[1] - size // 2)
    stamp(image, shape_mask(shape, size), corner, COLOURS[colour])


@cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """Which pixels of a square box belong to the shape.

    Raises ValueError for an unknown shape.
    """
    # Twice the distance from the middle, so that even sizes have a middle as well.
    rows, columns = np.indices((size, size)) * 2 - (size - 1)
    if shape == "circle":
        return rows**2 + columns**2 <= size**2 - 1
    if shape == "square":
        return np.ones((size, size), dtype=bool)
    if shape == "triangle":
        return 2 * np.abs(columns) <= rows + size
    raise ValueError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")


def cells(draws: np.random.Generator, count: int, *, across: int) -> list[tuple[int, int]]:
    """Middles (row, column) of different cells, drawn from `across` x `across` of them."""
    # Sorting random integers instead of `permutation`, which may change with NumPy.
    order = np.argsort(draws.integers(0, 2**62, across * across), kind="stable")[:count]
    pitch = SIDE // across
    return [
        (int(cell) // across * pitch + pitch // 2, int(cell) % across * pitch + pitch // 2)
        for cell in order
    ]


def jitter(draws: np.random.Generator, centre: tuple[int, int], reach: int) -> tuple[int, int]:
    """The centre, moved by at most `reach` pixels in each direction."""
    row, column = draws.integers(-reach, reach + 1, 2)
    return centre[0] + int(row), centre[1] + int(column)


def pick(draws: np.random.Generator, names: tuple[str, ...], count: int) -> list[str]:
    """Different names in random order."""
    order = np.argsort(draws.integers(0, 2**62, len(names)), kind="stable")
    return [names[index] for index in order[:count]]
