"""Training rows: one for each turn of a conversation and for each example of a task.

A conversation of n turns is n rows: the turns before are history, the loss is on the row's last
answer, and a number of samples means rows. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Int

from fusionbench.api.benchmarks import Picture
from fusionbench.harness.bundle import Bundle
from fusionbench.readers.text import IMAGE, Turn, images_in, without_images
from fusionbench.study.conversations import Conversation, Conversations


@dataclass(frozen=True, kw_only=True)
class Cached:
    """An image of a task, whose hidden states are cached."""

    task: str
    row: int
    """In the task's bundle and in every feature file."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training row."""

    name: str
    """As errors name it."""
    images: tuple[Picture | Cached, ...]
    """In the order of the `IMAGE` marks of `turns`."""
    turns: tuple[Turn, ...]
    """History and the turn that is trained on."""
    later: tuple[Turn, ...] = ()
    """The turns after it, for queries that see the whole conversation; never in the text."""


class Rows(Protocol):
    """The training rows of one part of a mixture, in a fixed order."""

    @property
    def images(self) -> Int[np.ndarray, " row"]:
        """Images of each row, or of its whole conversation."""
        ...

    @property
    def length(self) -> Int[np.ndarray, " row"]:
        """UTF-8 bytes of each row's questions and answers, history included."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: int) -> Row:
        """One row."""
        ...


class ConversationRows:
    """The rows of a set of conversations: item by item, turn by turn."""

    def __init__(self, conversations: Conversations, *, image_first: bool = True) -> None:
        """`image_first`: a single image goes in front of the first question (LLaVA-1.5)."""
        self._set = conversations
        self._image_first = image_first
        self._stops = np.cumsum(conversations.index.turns)

    def __len__(self) -> int:
        """Number of turns."""
        return int(self._stops[-1])

    def __getitem__(self, index: int) -> Row:
        """One turn with its history. Raises IndexError behind the last row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        item = int(np.searchsorted(self._stops, index, side="right"))
        first = int(self._stops[item - 1]) if item else 0
        return row_of(self._set[item], index - first, image_first=self._image_first)

    @cached_property
    def images(self) -> Int[np.ndarray, " row"]:
        """Images of the row's conversation."""
        index = self._set.index
        return np.repeat(index.images, index.turns)

    @cached_property
    def length(self) -> Int[np.ndarray, " row"]:
        """An upper bound: bytes of the row's whole conversation."""
        index = self._set.index
        return np.repeat(index.length, index.turns)


def row_of(conversation: Conversation, turn: int, *, image_first: bool = True) -> Row:
    """The row of a turn, counted from 0: this turn, those before it, and the images they name.

    Several images stay where their marks are.
    """
    turns = conversation.turns
    if image_first and len(conversation.pictures) == 1:
        turns = _image_first(turns)
    kept = turns[: turn + 1]
    return Row(
        name=f"{conversation.name}, turn {turn + 1}",
        images=conversation.pictures[: images_in(kept)],
        turns=kept,
        later=turns[turn + 1 :],
    )


def _image_first(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns with the mark in front of the first question, on a line of its own."""
    plain = [Turn(without_images(turn.question), turn.answer) for turn in turns]
    first = Turn(f"{IMAGE}\n{plain[0].question}", plain[0].answer)
    return (first, *plain[1:])


class TaskRows:
    """The training examples of a task's bundle: image, question, one answer."""

    def __init__(self, task: str, bundle: Bundle) -> None:
        """`bundle` is cut to the budget's `train_items`."""
        self._task, self._bundle = task, bundle

    def __len__(self) -> int:
        """Number of training examples."""
        return len(self._bundle.train)

    def __getitem__(self, index: int) -> Row:
        """One example."""
        bundle, train = self._bundle, self._bundle.train
        question = bundle.questions[int(train.questions[index])]
        answer = bundle.answers[int(train.answers[index])]
        return Row(
            name=f"{self._task}, {train.items[index]}",
            images=(Cached(task=self._task, row=int(train.rows[index])),),
            turns=(Turn(f"{IMAGE}\n{question}", answer),),
        )

    @property
    def images(self) -> Int[np.ndarray, " row"]:
        """One for every row."""
        return np.ones(len(self), dtype=np.int64)

    @cached_property
    def length(self) -> Int[np.ndarray, " row"]:
        """Bytes of question and answer."""
        train = self._bundle.train
        asked = np.array([len(text.encode()) for text in self._bundle.questions])
        told = np.array([len(text.encode()) for text in self._bundle.answers])
        return asked[train.questions] + told[train.answers]
