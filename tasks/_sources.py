"""From files of installed packages to splits: shared by the tasks that bring real images.

Packages are found, never imported: their imports may be heavy (TensorFlow, scikit-learn).
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fusionbench.api import Split, TaskData


def package_folder(package: str, *, get: str) -> Path:
    """Where an installed package lies.

    Raises ModuleNotFoundError with the command that installs it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; get it with: {get}")
    return Path(spec.submodule_search_locations[0])


def draw(*names: str) -> int:
    """A number that depends on the names alone, to order and to choose by."""
    return int.from_bytes(hashlib.sha256("\x1f".join(names).encode()).digest()[:8], "big")


def fair_order(names: Sequence[str], classes: Sequence[Hashable]) -> list[int]:
    """An order in which every prefix holds the classes in the proportions of the whole.

    Within a class the order is by `draw`; the classes are then dealt out evenly.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index in sorted(range(len(names)), key=lambda index: draw("order", names[index])):
        members[classes[index]].append(index)
    turns = [
        ((turn + 0.5) / len(group), draw("turn", names[index]), index)
        for group in members.values()
        for turn, index in enumerate(group)
    ]
    return [index for _, _, index in sorted(turns)]


def chosen(names: Sequence[str], classes: Sequence[int], pixels: Sequence[np.ndarray]) -> list[int]:
    """One of each set of images with equal pixels, and then as many of each class as the rarest.

    Without copies no image can lie in two splits; with equal classes a constant guess is worth
    exactly one over their number.
    """
    seen: set[bytes] = set()
    members: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(names)), key=lambda index: draw("keep", names[index])):
        look = hashlib.sha256(pixels[index].tobytes()).digest()
        if look not in seen:
            seen.add(look)
            members[classes[index]].append(index)
    size = min(len(group) for group in members.values())
    return sorted(index for group in members.values() for index in group[:size])


def deal(
    names: Sequence[str], classes: Sequence[int], sizes: Mapping[str, int]
) -> dict[str, list[int]]:
    """Positions for each split, filled in the order given; the last split takes the rest."""
    order = fair_order(names, classes)
    *filled, rest = sizes
    parts: dict[str, list[int]] = {}
    for split in filled:
        parts[split], order = order[: sizes[split]], order[sizes[split] :]
    return parts | {rest: order}


def one_question(
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    names: Sequence[str],
    *,
    question: str,
    answers: tuple[str, ...],
    sizes: Mapping[str, int],
) -> TaskData:
    """Data of a task with one constant question about each (grey) image.

    `sizes` names the examples of val and test; train gets the others.
    """
    kept = chosen(names, labels, images)
    names, labels = [names[i] for i in kept], [labels[i] for i in kept]
    parts = deal(names, labels, {**sizes, "train": 0})
    splits = {
        split: Split(
            items=tuple(names[i] for i in part),
            images=np.array(part),
            questions=(question,) * len(part),
            answers=np.array([labels[i] for i in part]),
        )
        for split, part in parts.items()
    }
    grey = np.stack([images[i] for i in kept])
    return TaskData(images=np.repeat(grey[..., None], 3, axis=-1), answers=answers, **splits)


def halve(image: np.ndarray) -> np.ndarray:
    """Mean of 2 x 2 pixels, rounded half up; an odd last row or column is left out.

    Integers only: the same on every machine.
    """
    even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2].astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
