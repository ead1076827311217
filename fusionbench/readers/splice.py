"""Rows of token ids and image tokens as one batch of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusionbench.api.errors import UserError
from fusionbench.readers.labels import EncodedRow

if TYPE_CHECKING:
    from fusionbench.readers.language import LanguageModel

IGNORED = -100
"""Label of a position that the loss leaves out."""


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """A padded batch."""

    embeds: Float[Tensor, "row position width"]
    mask: Bool[Tensor, "row position"]
    """False at padding."""
    labels: Int[Tensor, "row position"]
    """The token id at each labelled position, elsewhere `IGNORED`."""
    spots: tuple[tuple[int, int], ...]
    """(row, first position) of each image, in the order of the images."""


def splice(
    language: "LanguageModel",
    rows: Sequence[EncodedRow],
    images: Sequence[Float[Tensor, "token width"]],
    *,
    side: Literal["right", "left"],
) -> Spliced:
    """Embed the rows with their images, padded on `side`: right to train, left to generate.

    `images`: all rows' images in order, after the projector. Raises UserError where images and
    image marks differ in number, and for a row longer than the language model's context.
    """
    marks = [len(row.images_at) for row in rows]
    if sum(marks) != len(images):
        raise UserError(f"{len(images)} images for {sum(marks)} image marks in {len(rows)} rows")
    lengths, places = _layout(rows, [len(image) for image in images])
    language.require_room(max(lengths))
    longest = max(lengths)
    starts = [longest - length if side == "left" else 0 for length in lengths]
    ids = torch.tensor([i for row in rows for i in row.ids], device=language.device)
    text = iter(torch.split(language.embed(ids[None])[0], [len(row.ids) for row in rows]))
    remaining = iter(images)
    sequences = [_joined(row, next(text), [next(remaining) for _ in row.images_at]) for row in rows]
    return Spliced(
        embeds=torch.stack(
            [_padded(each, start, longest) for each, start in zip(sequences, starts, strict=True)]
        ),
        mask=_mask(lengths, starts, longest, language.device),
        labels=_labels(rows, places, starts, longest).to(language.device),
        spots=tuple(
            (number, start + first)
            for number, (start, (_, spots)) in enumerate(zip(starts, places, strict=True))
            for first in spots
        ),
    )


def _layout(
    rows: Sequence[EncodedRow], tokens: Sequence[int]
) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """Length of each row; the positions of its ids and the first position of each image."""
    lengths, places, sizes = [], [], iter(tokens)
    for row in rows:
        own = [next(sizes) for _ in row.images_at]
        spots = [at + sum(own[:number]) for number, at in enumerate(row.images_at)]
        positions = [
            index + sum(size for at, size in zip(row.images_at, own, strict=True) if at <= index)
            for index in range(len(row.ids))
        ]
        lengths.append(len(row.ids) + sum(own))
        places.append((positions, spots))
    return lengths, places


def _joined(
    row: EncodedRow,
    text: Float[Tensor, "id width"],
    images: Sequence[Float[Tensor, "token width"]],
) -> Float[Tensor, "position width"]:
    """The row's text, cut where its images stand."""
    parts = [text[: row.images_at[0]]] if row.images_at else [text]
    for image, (first, stop) in zip(images, pairwise((*row.images_at, len(row.ids))), strict=True):
        parts += [image.to(text.dtype), text[first:stop]]
    return torch.cat(parts)


def _padded(
    sequence: Float[Tensor, "position width"], start: int, length: int
) -> Float[Tensor, "longest width"]:
    return torch.nn.functional.pad(sequence, (0, 0, start, length - start - len(sequence)))


def _mask(
    lengths: Sequence[int], starts: Sequence[int], longest: int, device: torch.device
) -> Bool[Tensor, "row position"]:
    at = torch.arange(longest, device=device)
    first, count = (torch.tensor(each, device=device)[:, None] for each in (starts, lengths))
    return (at >= first) & (at < first + count)


def _labels(
    rows: Sequence[EncodedRow],
    places: Sequence[tuple[list[int], list[int]]],
    starts: Sequence[int],
    longest: int,
) -> Int[Tensor, "row position"]:
    labels = torch.full((len(rows), longest), IGNORED)
    for number, (row, start, (positions, _)) in enumerate(zip(rows, starts, places, strict=True)):
        for token, labelled, position in zip(row.ids, row.labelled, positions, strict=True):
            if labelled:
                labels[number, start + position] = token
    return labels
