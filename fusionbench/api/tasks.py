"""Contract of a task: images, questions, answers, three fixed splits, outcomes and metrics.

Free of torch: planning a study reads tasks without it.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
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
    """Permanent name of each example; unique within the task."""
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
    """The data of a task; no image is in two splits."""

    images: UInt8[np.ndarray, "image height width 3"]
    answers: tuple[str, ...]
    """The closed answer set."""
    train: Split
    val: Split
    test: Split

    def split(self, name: SplitName) -> Split:
        """The split of that name."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example, as `Task.judge` sees it."""

    name: str
    group: str
    """Its image group: questions about one image share it."""
    question: str
    answer: str
    """The true answer."""


@dataclass(frozen=True, kw_only=True)
class ScoredItems:
    """The examples behind a row of outcomes, in order, as `Task.metrics` sees them."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    """The true answers."""

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """One example."""
        return Example(
            name=self.names[index], group=self.groups[index],
            question=self.questions[index], answer=self.answers[index],
        )  # fmt: skip

    def pick(self, rows: Int[np.ndarray, " picked"]) -> "ScoredItems":
        """Some of the examples, in the given order."""
        columns = (self.names, self.groups, self.questions, self.answers)
        names, groups, questions, answers = (tuple(one[row] for row in rows) for one in columns)
        return ScoredItems(names=names, groups=groups, questions=questions, answers=answers)


class Scoring:
    """From answers to outcomes and metrics: what a cell needs of a task besides its data."""

    metric: str = "accuracy"
    """Name of the headline metric, the mean outcome."""
    chance: float
    """Expected score of a guesser who knows the answers' frequencies but not the image."""
    free_text: bool = False
    """True: `judge` scores the text of each answer; False: `score` compares class indices."""

    def score(
        self,
        predicted: Int[np.ndarray, " example"],
        answers: Int[np.ndarray, " example"],
    ) -> Float[np.ndarray, " example"]:
        """Outcome of each example, 0 to 1; by default 1 for the right answer."""
        return (predicted == answers).astype(np.float32)

    def judge(self, text: str, example: Example) -> float:
        """Outcome of a text answer, 0 to 1; by default 1 for the true answer, any case."""
        return float(text.strip().casefold() == example.answer.strip().casefold())

    def metrics(
        self, outcomes: Float[np.ndarray, " example"], items: ScoredItems
    ) -> Mapping[str, float]:
        """Named metrics, each 0 to 1, from the outcomes of `items`; by default their mean.

        Called on resampled examples too, for the interval of a metric that is not a mean.
        """
        return {self.metric: float(outcomes.mean())}


class Task(Scoring, ABC):
    """One task; its `@task(...)` line has the registered name, version and needs.

    `reads`, a literal tuple, names the files and folders that `load` reads, beside the task's file.
    Without it the data of a plug-in is read anew for each plan, since any file may have changed.
    """

    @abstractmethod
    def load(self) -> TaskData:
        """Read or render the data: the same bytes on every machine."""


def judged(
    task: Scoring, texts: Sequence[str], items: ScoredItems
) -> Float[np.ndarray, " example"]:
    """Outcome of each text answer. Raises ValueError for an outcome outside 0 to 1."""
    found = [task.judge(text, items[index]) for index, text in enumerate(texts)]
    outcomes = np.array(found, dtype=np.float32)
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError(f"judge must return outcomes from 0 to 1, got {outcomes.min():g} to "
                         f"{outcomes.max():g}")  # fmt: skip
    return outcomes


def require_outcomes(found: object, count: int, chance: float) -> Float[np.ndarray, " example"]:
    """What a task gave as outcomes of `count` examples, as an array.

    Raises ValueError for another number of them, for one outside 0 to 1, and for a chance score
    outside 0 to below 1.
    """
    outcomes = np.asarray(found)
    if outcomes.dtype.kind not in "biuf":
        raise ValueError(f"score must return numbers, got {outcomes.dtype}")
    if outcomes.shape != (count,):
        raise ValueError(f"score must return {count} outcomes in a row, got {outcomes.shape}")
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError(f"score must return outcomes from 0 to 1, got {outcomes.min():g} to "
                         f"{outcomes.max():g}")  # fmt: skip
    if not 0 <= chance < 1:
        raise ValueError(f"chance must lie from 0 to below 1, got {chance!r}")
    return outcomes


def data_hash(data: TaskData) -> str:
    """SHA-256 of a task's data: the data's part of a cell's identity.

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


def validate(data: TaskData, *, apart: bool = True) -> None:
    """Raise ValueError if the data breaks the contract of a task.

    `apart`: no image may be in two splits.
    """
    shape = data.images.shape
    if data.images.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(
            f"images must be uint8 [image height width 3], got {data.images.dtype} {list(shape)}"
        )
    if len(set(data.answers)) != len(data.answers) or len(data.answers) < 2:
        raise ValueError(f"answers must be at least two different texts, got {data.answers}")
    if not all(answer.strip() for answer in data.answers):
        raise ValueError(f"an answer is an empty text: {data.answers}")
    for name in SPLITS:
        _validate_split(name, data.split(name), data)
    items = Counter(item for name in SPLITS for item in data.split(name).items)
    if repeated := [item for item, count in items.items() if count > 1]:
        raise ValueError(f"{len(repeated)} items are not unique, the first is {repeated[0]!r}")
    if apart:
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
    if blank := [n for n, text in enumerate(split.questions) if not text.strip()]:
        raise ValueError(f"{name}: example {blank[0]} has no question")


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
