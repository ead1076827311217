"""Handwritten digits of 8 x 8 pixels (UCI, by way of scikit-learn): 1,797 images, of which
1,740 are used, 174 of each digit.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998. Of the group "fine": a linear
probe of an untrained vision transformer reads 90 % of them, so strokes decide, not meaning.
"""

import gzip

import numpy as np

from fusionbench.api import Task, TaskData, task
from fusionbench.tasks._sources import one_question, package_folder


@task(
    "digits",
    version=1,
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
        # Ink is 0..16; black on white is what pretrained encoders have seen more of.
        ink = table[:, :-1].reshape(-1, 8, 8)
        images = (255 - ink * 255 // 16).astype(np.uint8)
        labels = table[:, -1].tolist()
        names = [f"digits/{row:04d}" for row in range(len(labels))]
        return one_question(
            list(images),
            labels,
            names,
            question="which digit is this?",
            answers=tuple(str(digit) for digit in range(10)),
            sizes={"test": 500, "val": 200},
        )
