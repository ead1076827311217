"""What a task is: images, questions, answers, three fixed splits and a score per example.

No torch here: planning a study reads tasks without it.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Examples of one split, in a fixed order; a prefix of a split is a fair smaller split."""

    items: tuple[str, ...]
    """A name for each example that stays the same for ever; unique within the task."""
    images: Int[np.ndarray, " example"]
    """Row of each example's image in `TaskData.images`; examples of one image are a group."""
    questions: tuple[str, ...]
    answers: Int[np.ndarray, " example"]
    """Index into `TaskData.answers`."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.items)


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Everything a task brings; no image lies in two splits."""

    images: UInt8[np.ndarray, "image height width 3"]
    answers: tuple[str, ...]
    """The closed answer set."""
    train: Split
    val: Split
    test: Split

    def split(self, name: SplitName) -> Split:
        """The split of that name."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


class Scoring:
    """How answers are judged: all that a cell needs of a task once its data is cut."""

    metric: str = "accuracy"
    chance: float
    """Expected score of a guesser who knows the answers' frequencies but not the image."""

    def score(
        self,
        predicted: Int[np.ndarray, " example"],
        answers: Int[np.ndarray, " example"],
    ) -> Float[np.ndarray, " example"]:
        """Score of each example, 0 to 1; by default 1 for the right answer."""
        return (predicted == answers).astype(np.float32)


class Task(Scoring, ABC):
    """One task; the registered name, version and needs stand in its `@task(...)` line."""

    @abstractmethod
    def load(self) -> TaskData:
        """Read or render the data: the same bytes on every machine."""


def data_hash(data: TaskData) -> str:
    """SHA-256 of all that a task brings: the data's part of a cell's identity.

    Order: the images' shape and bytes, the answer set, then train, val and test with their items,
    image rows, questions and answers; integers as little-endian 64 bit, text as JSON, each part
    after its length, so that no two tasks share a stream of bytes.
    """
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    add(json.dumps(data.images.shape).encode())
    add(np.ascontiguousarray(data.images).tobytes())
    add(json.dumps(data.answers).encode())
    for name in SPLITS:
        split = data.split(name)
        add(json.dumps([name, split.items, split.questions]).encode())
        add(split.images.astype("<i8").tobytes())
        add(split.answers.astype("<i8").tobytes())
    return digest.hexdigest()


def validate(data: TaskData) -> None:
    """Raise ValueError, in words, if the data breaks the contract of a task."""
    shape = data.images.shape
    if data.images.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 [image height width 3], got {data.images.dtype} {list(shape)}"
        )
    if len(set(data.answers)) != len(data.answers) or len(data.answers) < 2:
        raise ValueError(f"answers must be at least two different texts, got {data.answers}")
    for name in SPLITS:
        _validate_split(name, data.split(name), data)
    items = Counter(item for name in SPLITS for item in data.split(name).items)
    if repeated := [item for item, count in items.items() if count > 1]:
        raise ValueError(f"{len(repeated)} items are not unique, the first is {repeated[0]!r}")
    _validate_apart(data)


def _validate_split(name: SplitName, split: Split, data: TaskData) -> None:
    lengths = {len(split), len(split.images), len(split.questions), len(split.answers)}
    if len(lengths) > 1:
        raise ValueError(f"{name}: items, images, questions, answers differ in length: {lengths}")
    if not len(split):
        raise ValueError(f"{name} has no example")
    for what, values, allowed in (
        ("images", split.images, len(data.images)),
        ("answers", split.answers, len(data.answers)),
    ):
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(f"{name}: {what} must be integers in a row, got {values.dtype}")
        if values.min() < 0 or values.max() >= allowed:
            wrong = values[(values < 0) | (values >= allowed)][0]
            raise ValueError(f"{name}: {what} must lie in 0..{allowed - 1}, got {wrong}")
    if not all(split.questions):
        raise ValueError(f"{name}: example {split.questions.index('')} has no question")


def _validate_apart(data: TaskData) -> None:
    """No image in two splits, neither by its row nor as a copy of the same pixels."""
    home: dict[bytes, tuple[SplitName, int]] = {}
    for name in SPLITS:
        for row in np.unique(data.split(name).images):
            pixels = hashlib.blake2b(data.images[row].tobytes(), digest_size=16).digest()
            first, twin = home.setdefault(pixels, (name, int(row)))
            if first != name:
                which = f"image {row}" if twin == row else f"images {twin} and {row}, equal pixels,"
                raise ValueError(f"{which} in {first} and in {name}: splits must share no image")
