"""The rows of a mixture and the order in which a training draws them.

The order is a function of seed and step alone, so a resumed training needs no state of the data.
An epoch of the mixture has `share` times the rows of each part, parts in random order. Within a
part no row comes again before all have come: each of its epochs is a fresh permutation. No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from fusionbench.api.errors import UserError
from fusionbench.api.seeding import stream
from fusionbench.harness.bundle import Bundle
from fusionbench.study.mixture import MixtureCard, Part, PartCard, open_conversations
from fusionbench.vlm.conversations import ConversationRows, Row, Rows, TaskRows

Order = Int[np.ndarray, " draw"]
MOST_DROPPED = 0.05
"""Largest share of a mixture's rows that may be too long."""


@dataclass(frozen=True, kw_only=True)
class MixedPart:
    """The rows of one part and how often they are drawn."""

    card: PartCard
    rows: Rows
    kept: Int[np.ndarray, " kept"]
    """The rows that are drawn; others are too long."""

    @property
    def draws(self) -> int:
        """Rows of this part in an epoch of the mixture."""
        return max(1, round(self.card.share * len(self.kept)))

    def local(self, start: int, seed: int) -> Order:
        """The rows of `draws` draws from draw `start` on."""
        size = len(self.kept)
        ranks = np.arange(start, start + self.draws)
        found = np.empty(len(ranks), dtype=np.int64)
        for epoch in range(ranks[0] // size, ranks[-1] // size + 1):
            here = ranks // size == epoch
            shuffled = stream("vlm", "rows", self.card.hash, seed, epoch).permutation(size)
            found[here] = self.kept[shuffled[ranks[here] % size]]
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

    def __getitem__(self, index: int) -> Row:
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
        draws = [part.draws for part in self.parts]
        whose = np.repeat(np.arange(len(draws)), draws)
        whose = whose[self._stream("parts", epoch, seed).permutation(len(whose))]
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
        rows: Rows
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


def within(mixture: Mixture, fits: Callable[[Row], bool], *, sure: int = 0) -> Mixture:
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
