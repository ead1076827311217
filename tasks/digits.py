"""Handwritten digits of 8 x 8 pixels (UCI, by way of scikit-learn): 1,797 images, of which
1,740 are used, 174 of each digit. Each is written somewhere on 14 x 14 pixels of paper, in half
faint to black ink.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998; licence CC BY 4.0. Of the
group "fine": a linear probe of an untrained vision transformer reads 90 % of them, so strokes
decide, not meaning.
"""

import gzip

import numpy as np

from fusionbench.api import Task, TaskData, stream, task
from fusionbench.tasks._sources import one_question, package_folder

_SIDE = 14


@task(
    "digits",
    version=2,
    family="digits",
    group="fine",
    needs=("sklearn",),
    get="pip install 'scikit-learn>=1.5'",
)
class Digits(Task):
    """Which digit is written? A constant question."""

    chance = 0.1

    def load(self) -> TaskData:
        """All images, one row of the package's table each, named by the row."""
        folder = package_folder("sklearn", get="pip install 'scikit-learn>=1.5'")
        with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as file:
            table = np.loadtxt(file, delimiter=",").astype(np.int64)
        images = [_written(row, ink.reshape(8, 8)) for row, ink in enumerate(table[:, :-1])]
        labels = table[:, -1].tolist()
        names = [f"digits/{row:04d}" for row in range(len(labels))]
        return one_question(
            images,
            labels,
            names,
            question="which digit is this?",
            answers=tuple(str(digit) for digit in range(10)),
            sizes={"test": 500, "val": 200},
        )


def _written(row: int, ink: np.ndarray) -> np.ndarray:
    """The digit at a place and with a strength of its own, uint8 [14 14]; ink is 0..16."""
    draws = stream("digits", "spot", row)
    top, left = draws.integers(0, _SIDE - 8 + 1, 2)
    paper = np.zeros((_SIDE, _SIDE), dtype=np.int64)
    # Black on white is what pretrained encoders have seen more of.
    paper[top : top + 8, left : left + 8] = ink * int(draws.integers(8, 17))
    return (255 - paper * 255 // 256).astype(np.uint8)
