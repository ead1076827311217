"""Animal-MNIST: 10,000 silhouettes of 28 x 28 pixels, ten animals (S. Mohammadi, 2025, MIT).

The arrays of the PyPI package `animal-mnist` 0.4 lie beside this file with their licence: the
package itself depends on TensorFlow. 284 images are copies of others (same label); each is kept
once.
"""

from pathlib import Path

import numpy as np

from fusionbench.api import Task, TaskData, task
from fusionbench.tasks._sources import one_question

ANIMALS = (
    "bear",
    "bird",
    "cat",
    "cow",
    "dog",
    "elephant",
    "giraffe",
    "horse",
    "sheep",
    "zebra",
)


@task("animal_mnist", version=1, family="animal_mnist", group="semantic")
class AnimalMnist(Task):
    """Which animal is this? A constant question."""

    chance = 0.1

    def load(self) -> TaskData:
        """White silhouettes on black, named by their position in the package's file."""
        with np.load(Path(__file__).with_suffix(".npz")) as arrays:
            images, labels = arrays["images"], arrays["labels"].tolist()
        names = [f"animal_mnist/{index:05d}" for index in range(len(labels))]
        return one_question(
            images,
            labels,
            names,
            question="which animal is this?",
            answers=ANIMALS,
            sizes={"test": 2000, "val": 600},
        )
