"""Batches of rows: encoded text, the images that it shows, and what a fusion sees of the text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fusionbench.api.seeding import stream
from fusionbench.harness.stepping import States
from fusionbench.readers.labels import EncodedRow
from fusionbench.readers.llava.kinds import Pair
from fusionbench.vlm.conversations import Row
from fusionbench.vlm.states import ImageStates

Encode = Callable[[Row], EncodedRow]
"""The text of a row as ids."""
KNOWN = 16_384
"""Encoded texts kept in memory, at most: files of conversations have hundreds of thousands."""


class Rows(Protocol):
    """Rows by number."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Row:
        """One row."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that go through a model together."""

    rows: tuple[EncodedRow, ...]
    owners: tuple[int, ...]
    """The row of each image, in the order of the rows."""
    states: States
    """Gives the hidden states of all images; of a batch of text alone, of one blank image."""
    queries: tuple[Sequence[int], ...]
    """Ids of each row's query; its own, or those of another row (`question=shuffled`)."""
    answers: tuple[Sequence[int], ...]
    """Ids of each row's answer, for a summary and for methods that read answers; empty where an
    answer is asked for."""
    pictures: tuple[tuple[int, Pair], ...] = ()
    """(inputs of the encoder, (height, width) in pixels) of each image; empty: one input each."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def asking(self) -> tuple[int, ...]:
        """The row of each input of the encoder."""
        pairs = zip(self.owners, self.parts, strict=True)
        return tuple(owner for owner, (inputs, _) in pairs for _ in range(inputs))

    @property
    def parts(self) -> list[tuple[int, Pair]]:
        """`pictures`, or one input of no size for each image."""
        return list(self.pictures) or [(1, (0, 0))] * len(self.owners)

    @property
    def shows(self) -> bool:
        """Whether any row has an image."""
        return bool(self.owners)


class Batches:
    """Makes batches of rows by their numbers; the encoded texts of the last `KNOWN` are kept."""

    def __init__(
        self, rows: Rows, encode: Encode, states: ImageStates, *, shuffled: int | None = None,
        files: bool = False,
    ) -> None:  # fmt: skip
        """`shuffled`: a seed; each row's query is that of another row (`question=shuffled`).

        `files`: whether some rows have images in files, which are worth reading ahead.
        """
        self.rows = rows
        self._encode = encode
        self._states = states
        self._known: dict[object, EncodedRow] = {}
        self._files = files
        self._asked = None
        if shuffled is not None:
            self._asked = stream("vlm", "strangers", shuffled).permutation(len(rows))

    def encoded(self, row: Row) -> EncodedRow:
        """The text of a row as ids."""
        key = (row.turns, row.later)
        if key not in self._known:
            if len(self._known) >= KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._encode(row)
        return self._known[key]

    def labelled(self, index: int) -> int:
        """Number of labelled tokens of a row."""
        return sum(self.encoded(self.rows[index]).labelled)

    def expect(self, indices: Iterable[int]) -> None:
        """Announce rows of the coming steps: their images are read ahead."""
        if self._files:
            for index in indices:
                self._states.expect(self.rows[int(index)].images)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """These rows as a batch."""
        rows = [self.rows[index] for index in indices]
        encoded = tuple(map(self.encoded, rows))
        shown = self._states.shown([row.images for row in rows])
        return Batch(
            rows=encoded,
            owners=tuple(at for at, row in enumerate(rows) for _ in row.images),
            states=shown.states,
            pictures=shown.pictures,
            queries=self._queries(indices, encoded),
            answers=tuple(answer_ids(row) for row in encoded),
        )

    def _queries(
        self, indices: Sequence[int], own: Sequence[EncodedRow]
    ) -> tuple[Sequence[int], ...]:
        if self._asked is None:
            return tuple(row.query_ids for row in own)
        others = np.asarray(self._asked)[list(indices)]
        return tuple(self.encoded(self.rows[int(other)]).query_ids for other in others)


def answer_ids(row: EncodedRow) -> tuple[int, ...]:
    """The labelled ids."""
    return tuple(one for one, labelled in zip(row.ids, row.labelled, strict=True) if labelled)
