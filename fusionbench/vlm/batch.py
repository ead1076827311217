"""A batch of rows: encoded text, the images that it shows, and what a fusion sees of the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusionbench.harness.stepping import States
from fusionbench.readers.labels import EncodedRow


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
    """Ids of each row's answer, for a summary and for methods that read answers; empty in a
    test."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def shows(self) -> bool:
        """Whether any row has an image."""
        return bool(self.owners)


def answer_ids(row: EncodedRow) -> tuple[int, ...]:
    """The labelled ids."""
    return tuple(one for one, labelled in zip(row.ids, row.labelled, strict=True) if labelled)
