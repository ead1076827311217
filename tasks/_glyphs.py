"""A bitmap font of our own, 5 x 7 pixels: no font library may change a pixel of a task."""

import numpy as np

_ROWS = {
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "B": "####. #...# #...# ####. #...# #...# ####.",
    "C": ".#### #.... #.... #.... #.... #.... .####",
    "D": "####. #...# #...# #...# #...# #...# ####.",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "G": ".#### #.... #.... #..## #...# #...# .####",
    "I": "##### ..#.. ..#.. ..#.. ..#.. ..#.. #####",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "M": "#...# ##.## #.#.# #...# #...# #...# #...#",
    "N": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "O": ".###. #...# #...# #...# #...# #...# .###.",
    "P": "####. #...# #...# ####. #.... #.... #....",
    "R": "####. #...# #...# ####. #.#.. #..#. #...#",
    "S": ".#### #.... #.... .###. ....# ....# ####.",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
    "Y": "#...# #...# .#.#. ..#.. ..#.. ..#.. ..#..",
}


def word_mask(word: str, scale: int = 1) -> np.ndarray:
    """Which pixels of a word's box are ink; letters are one (scaled) pixel apart.

    Raises ValueError for a letter that the font lacks.
    """
    if missing := sorted(set(word) - set(_ROWS)):
        raise ValueError(f"the font has no {', '.join(missing)}; it has {', '.join(_ROWS)}")
    gap = np.zeros((7, 1), dtype=bool)
    columns = [part for letter in word for part in (_letter(letter), gap)][:-1]
    return np.kron(np.concatenate(columns, axis=1), np.ones((scale, scale), dtype=bool))


def _letter(letter: str) -> np.ndarray:
    return np.array([[mark == "#" for mark in row] for row in _ROWS[letter].split()])
