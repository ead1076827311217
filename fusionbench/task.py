"""What a task is: images, questions, answers, three fixed splits and a score per example.

No torch here: planning a study reads tasks without it.
"""

from abc import ABC, abstractmethod
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


class Task(ABC):
    """One task; the registered name, version and needs stand in its `@task(...)` line."""

    metric: str = "accuracy"
    chance: float
    """Expected score of a guesser who knows the answers' frequencies but not the image."""

    @abstractmethod
    def load(self) -> TaskData:
        """Read or render the data: the same bytes on every machine."""

    def score(
        self,
        predicted: Int[np.ndarray, " example"],
        answers: Int[np.ndarray, " example"],
    ) -> Float[np.ndarray, " example"]:
        """Score of each example, 0 to 1; by default 1 for the right answer."""
        return (predicted == answers).astype(np.float32)
