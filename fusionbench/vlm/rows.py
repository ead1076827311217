"""Training rows, one for each turn or example, and the order in which a training draws them.

A conversation of n turns is n rows: the turns before are history, the loss is on the row's last
answer, and a number of samples means rows.

The order is a function of seed and step alone, so a resumed training needs no state of the data.
An epoch of the mixture has `share` times the rows of each part, parts in random order. Within a
part no row comes again before all have come: each of its epochs is a fresh permutation. No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int

from fusionbench.api.benchmarks import Picture
from fusionbench.api.errors import UserError
from fusionbench.api.seeding import stream
from fusionbench.harness.bundle import Bundle
from fusionbench.models.readers.text import IMAGE, Turn, images_in, without_images
from fusionbench.study.conversations import Conversation, Conversations
from fusionbench.study.mixture import MixtureCard, Part, PartCard, open_conversations


@dataclass(frozen=True, kw_only=True)
class Cached:
    """An image of a task, whose hidden states are cached."""

    task: str
    row: int
    """In the task's bundle and in every feature file."""


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One training row."""

    name: str
    """As errors name it."""
    images: tuple[Picture | Cached, ...]
    """In the order of the `IMAGE` marks of `turns`."""
    turns: tuple[Turn, ...]
    """History and the turn that is trained on."""
    later: tuple[Turn, ...] = ()
    """The turns after it, for queries that see the whole conversation; never in the text."""


class PartRows(Protocol):
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

    def __getitem__(self, index: int) -> TrainingRow:
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

    def __getitem__(self, index: int) -> TrainingRow:
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


def row_of(conversation: Conversation, turn: int, *, image_first: bool = True) -> TrainingRow:
    """The row of a turn, counted from 0: this turn, those before it, and the images they name.

    Several images stay where their marks are.
    """
    turns = conversation.turns
    if image_first and len(conversation.pictures) == 1:
        turns = _image_first(turns)
    kept = turns[: turn + 1]
    return TrainingRow(
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

    def __getitem__(self, index: int) -> TrainingRow:
        """One example."""
        bundle, train = self._bundle, self._bundle.train
        question = bundle.questions[int(train.questions[index])]
        answer = bundle.answers[int(train.answers[index])]
        return TrainingRow(
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


Order = Int[np.ndarray, " draw"]
MOST_DROPPED = 0.05
"""Largest share of a mixture's rows that may be too long."""


@dataclass(frozen=True, kw_only=True)
class MixedPart:
    """The rows of one part and how often they are drawn."""

    card: PartCard
    rows: PartRows
    kept: Int[np.ndarray, " kept"]
    """The rows that are drawn; others are too long."""

    @property
    def draws(self) -> int:
        """Rows of this part in an epoch of the mixture."""
        return self.draws_of(len(self.kept))

    def draws_of(self, rows: int) -> int:
        """Rows of this part in an epoch of the mixture, if it had so many."""
        return max(1, round(self.card.share * rows))

    def local(self, start: int, seed: int) -> Order:
        """The rows of `draws` draws from draw `start` on."""
        size = len(self.kept)
        ranks = np.arange(start, start + self.draws)
        found = np.empty(len(ranks), dtype=np.int64)
        for epoch in range(ranks[0] // size, ranks[-1] // size + 1):
            here = ranks // size == epoch
            # All rows are shuffled: those that are too long leave the others in their order.
            draw = stream("vlm", "rows", self.card.hash, seed, epoch)
            shuffled = draw.permutation(len(self.rows))
            kept = shuffled[np.isin(shuffled, self.kept)]
            found[here] = kept[ranks[here] % size]
        return found


class Mixture:
    """Rows by number, parts one after the other, and their order in a training."""

    def __init__(self, parts: Sequence[MixedPart], *, grouped: bool = False) -> None:
        """`grouped`: rows of a step all have an image or all have none.

        As LLaVA's `group_by_modality_length` does; rows of an epoch that fill no step of their own
        kind are mixed, and the last ones that fill no step are left out. Raises UserError if no
        row is left.
        """
        # By hash: the order does not depend on names, nor on the order in which they are named.
        self.parts = tuple(sorted(parts, key=lambda part: part.card.hash))
        self.grouped = grouped
        if not all(len(part.kept) for part in self.parts) or not self.parts:
            empty = [part.card.name for part in self.parts if not len(part.kept)]
            raise UserError(f"mixture: no rows in {', '.join(empty) or 'it'}", "name another part")
        self._stops = np.cumsum([len(part.rows) for part in self.parts])
        self._epoch = lru_cache(maxsize=2)(self._epoch_of)

    def __len__(self) -> int:
        """Number of rows, dropped ones included."""
        return int(self._stops[-1])

    def __getitem__(self, index: int) -> TrainingRow:
        """One row by its number."""
        part, row = self.place(index)
        return part.rows[row]

    def place(self, index: int) -> tuple[MixedPart, int]:
        """The part of a row and its number there. Raises IndexError behind the last row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._stops, index, side="right"))
        return self.parts[number], index - (int(self._stops[number - 1]) if number else 0)

    @property
    def draws(self) -> int:
        """Draws of an epoch of the mixture."""
        return sum(part.draws for part in self.parts)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Part -> number of rows that are too long; parts without such a row are left out."""
        counts = {part.card.name: len(part.rows) - len(part.kept) for part in self.parts}
        return {name: count for name, count in counts.items() if count}

    def order(self, step: int, batch: int, seed: int) -> Order:
        """The rows of a step, counted from 0; `batch` is the global batch."""
        size = self._epoch_size(batch)
        wanted = np.arange(step * batch, (step + 1) * batch)
        epochs = wanted // size
        parts = [
            self._epoch(int(epoch), batch if self.grouped else 0, seed)[
                wanted[epochs == epoch] % size
            ]
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)

    def _epoch_size(self, batch: int) -> int:
        whole = self.draws // batch * batch
        return whole if self.grouped and whole else self.draws

    def _epoch_of(self, epoch: int, batch: int, seed: int) -> Order:
        every = [part.draws_of(len(part.rows)) for part in self.parts]
        whose = np.repeat(np.arange(len(every)), every)
        whose = whose[self._stream("parts", epoch, seed).permutation(len(whose))]
        places = [
            np.flatnonzero(whose == number)[: part.draws] for number, part in enumerate(self.parts)
        ]
        whose = whose[np.sort(np.concatenate(places))]
        rows = np.empty(len(whose), dtype=np.int64)
        for number, part in enumerate(self.parts):
            first = int(self._stops[number]) - len(part.rows)
            rows[whose == number] = first + part.local(epoch * part.draws, seed)
        whole = len(rows) // batch if batch else 0
        return self._by_kind(rows, batch, epoch, seed)[: whole * batch] if whole else rows

    def _by_kind(self, rows: Order, batch: int, epoch: int, seed: int) -> Order:
        """The same rows, steps of one kind in random order and the mixed rest last."""
        pictured = self._with_image[rows]
        steps: list[Order] = []
        rest: list[Order] = []
        for kind in (True, False):
            found = rows[pictured == kind]
            whole = len(found) // batch * batch
            steps += list(found[:whole].reshape(-1, batch))
            rest.append(found[whole:])
        turn = self._stream("steps", epoch, seed).permutation(len(steps))
        return np.concatenate([*(steps[number] for number in turn), *rest])

    def _stream(self, what: str, epoch: int, seed: int) -> np.random.Generator:
        hashes = [part.card.hash for part in self.parts]
        return stream("vlm", what, *hashes, seed, epoch)

    @cached_property
    def _with_image(self) -> Bool[np.ndarray, " row"]:
        return np.concatenate([part.rows.images > 0 for part in self.parts])


def open_mixture(
    card: MixtureCard,
    parts: Sequence[Part],
    bundles: Mapping[str, Bundle],
    data_root: Path | None = None,
    *,
    grouped: bool = False,
    image_first: bool = True,
) -> Mixture:
    """The mixture that `describe_mixture` described; `bundles` has those of its tasks by name.

    Raises UserError if a part's rows are no longer those of the card.
    """
    cards = {described.name: described for described in card.parts}
    mixed = []
    for part in parts:
        described = cards[part.label]
        rows: PartRows
        if part.is_task:
            rows = TaskRows(part.name, bundles[part.name])
        else:
            conversations = open_conversations(part, data_root)
            _refuse_changed(described, conversations.index.hash)
            rows = ConversationRows(conversations, image_first=image_first)
        mixed.append(MixedPart(card=described, rows=rows, kept=np.arange(len(rows))))
    return Mixture(mixed, grouped=grouped)


def _refuse_changed(card: PartCard, found: str) -> None:
    if found != card.hash:
        raise UserError(f"{card.name} has changed since the run was planned", "start the run again")


def within(mixture: Mixture, fits: Callable[[TrainingRow], bool], *, sure: int = 0) -> Mixture:
    """The mixture without the rows whose answer the length limit would cut off.

    `fits` tells whether a row's text and images fit; rows with at most `sure` bytes of text and one
    image are not asked for (a token of a byte-level tokenizer has at least one byte). Raises
    UserError if more than `MOST_DROPPED` of all rows are too long, with the first of them.
    """
    parts, first = [], ""
    for part in mixture.parts:
        good = (part.rows.length <= sure) & (part.rows.images <= 1)
        for row in np.flatnonzero(~good):
            good[row] = fits(part.rows[int(row)])
            first = first or ("" if good[row] else part.rows[int(row)].name)
        parts.append(replace(part, kept=np.flatnonzero(good)))
    dropped = sum(len(part.rows) - len(part.kept) for part in parts)
    if dropped > MOST_DROPPED * len(mixture):
        raise UserError(
            f"{dropped} of {len(mixture)} rows are longer than the limit, the first is {first}",
            f"at most {MOST_DROPPED:.0%} may be: raise the limit or remove the long rows",
        )
    return Mixture(parts, grouped=mixture.grouped)
