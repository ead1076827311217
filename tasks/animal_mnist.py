"""Animal-MNIST: 10,000 silhouettes of 28 x 28 pixels, ten animals (PyPI `animal-mnist`, MIT).

284 images are copies of others (same label); each is kept once.
"""

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fusionbench.api import Task, TaskData, task
from fusionbench.tasks._sources import one_question, package_folder

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


@task(
    "animal_mnist",
    version=1,
    family="animal_mnist",
    group="semantic",
    needs=("animal_mnist",),
    get="pip install --no-deps animal-mnist==0.4",
)
class AnimalMnist(Task):
    """Which animal is this? A constant question."""

    chance = 0.1

    def load(self) -> TaskData:
        """White silhouettes on black, named by their position in the package's file."""
        folder = package_folder("animal_mnist", get="pip install --no-deps animal-mnist==0.4")
        home = folder / "data" / "Animal_MNIST"
        images = _array(home / "animal_data_version_3.gz")
        labels = _array(home / "animal_label_version_3.gz").tolist()
        names = [f"animal_mnist/{index:05d}" for index in range(len(labels))]
        return one_question(
            images,
            labels,
            names,
            question="which animal is this?",
            answers=ANIMALS,
            sizes={"test": 2000, "val": 600},
        )


class _ArrayReader(pickle.Unpickler):
    """Reads a pickled NumPy array and nothing else: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {
            "_reconstruct": np.empty(0).__reduce__()[0],
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module.split(".")[0] != "numpy" or name not in known:
            raise ValueError(f"the file wants {module}.{name}; only NumPy arrays are read")
        return known[name]


def _array(path: Path) -> np.ndarray:
    with gzip.open(path, "rb") as file:
        array = _ArrayReader(io.BytesIO(file.read())).load()
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path.name} holds a {type(array).__name__}, not an array")
    return array
