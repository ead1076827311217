"""Rows of local tasks: their questions and answers as text, their images as cached states."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusionbench.api.seeding import stream
from fusionbench.api.tasks import SplitName
from fusionbench.harness.bundle import Bundle
from fusionbench.readers.labels import EncodedRow
from fusionbench.readers.text import IMAGE, Turn
from fusionbench.vlm.batch import Batch, answer_ids
from fusionbench.vlm.states import CachedStates, LocalImage

Encode = Callable[[Sequence[Turn], bool], EncodedRow]
"""Encodes the turns of a row, with the last answer labelled or asked for."""


@dataclass(frozen=True, kw_only=True)
class LocalRow:
    """One example of a task."""

    turn: Turn
    image: LocalImage


def rows_of(task: str, bundle: Bundle, split: SplitName) -> list[LocalRow]:
    """The examples of a split as one turn each, the image in front of the question."""
    examples = bundle.split(split)
    return [
        LocalRow(
            turn=Turn(f"{IMAGE}{bundle.questions[question]}", bundle.answers[answer]),
            image=(task, int(row)),
        )
        for question, answer, row in zip(
            examples.questions, examples.answers, examples.rows, strict=True
        )
    ]


class LocalBatches:
    """Batches of rows of local tasks; equal texts are encoded once."""

    def __init__(
        self, rows: Sequence[LocalRow], encode: Encode, states: CachedStates, *, answer: bool,
        shuffled: int | None = None,
    ) -> None:  # fmt: skip
        """`shuffled`: a seed; each row's query is that of another row (`question=shuffled`)."""
        self.rows = rows
        self._encode = encode
        self._states = states
        self._answer = answer
        self._known: dict[Turn, EncodedRow] = {}
        self._asked = np.arange(len(rows))
        if shuffled is not None:
            self._asked = stream("vlm", "strangers", shuffled).permutation(len(rows))

    def encoded(self, index: int) -> EncodedRow:
        """The text of a row as ids."""
        turn = self.rows[index].turn
        if turn not in self._known:
            self._known[turn] = self._encode((turn,), self._answer)
        return self._known[turn]

    def labelled(self, index: int) -> int:
        """Number of labelled tokens of a row."""
        return sum(self.encoded(index).labelled)

    def fetch(self, indices: Sequence[int]) -> Batch:
        """These rows as a batch."""
        encoded = tuple(self.encoded(index) for index in indices)
        return Batch(
            rows=encoded,
            owners=tuple(range(len(indices))),
            states=self._states.of([self.rows[index].image for index in indices]),
            queries=tuple(self.encoded(int(self._asked[index])).query_ids for index in indices),
            answers=tuple(answer_ids(row) for row in encoded),
        )


def texts_of(bundles: Mapping[str, Bundle]) -> list[str]:
    """Questions and answers of the training rows, each once: the vocabulary of `words`."""
    found: dict[str, None] = {}
    for name, bundle in bundles.items():
        for row in rows_of(name, bundle, "train"):
            found.setdefault(row.turn.question)
            found.setdefault(row.turn.answer)
    return list(found)
