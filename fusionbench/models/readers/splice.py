"""Image tokens in a language model: LLaVA's projector, and their place among the embeddings.

The projector is `mlp2x_gelu` of Liu et al. 2024, "Improved Baselines with Visual Instruction
Tuning" (arXiv 2310.03744): Linear, GELU, Linear, with the parameter names of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.errors import UserError, one_of
from fusionbench.models.readers.labels import EncodedRow
from fusionbench.records.cell import PROJECTORS

if TYPE_CHECKING:
    from fusionbench.models.readers.language import LanguageModel

_PROBES = 256


class LanguageProjector(nn.Module):
    """Projects fused tokens of width `in_dim` to a language model's `width`.

    At initialisation its outputs have the standard deviation `scale`, that of the token embeddings
    (`LanguageModel.scale`), for inputs of unit normal entries.

    normed  a LayerNorm without parameters in front, so that one learning rate fits hidden states
            of every scale
    plain   LLaVA's own, which a checkpoint's projector needs

    Parameters: k D H + H + H^2 + H. Raises ValueError for another `kind`.
    """

    def __init__(
        self, in_dim: int, width: int, *, kind: str = "normed", scale: float | None = None
    ) -> None:
        super().__init__()
        self.kind = one_of("projector", kind, PROJECTORS)
        self.linear_1 = nn.Linear(in_dim, width)
        self.linear_2 = nn.Linear(width, width)
        if scale is not None:
            probes = torch.randn(_PROBES, in_dim, generator=torch.Generator().manual_seed(0))
            self.start_at(scale, probes)

    def forward(self, tokens: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch width"]:
        """Project each token."""
        if self.kind == "normed":
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return self.linear_2(F.gelu(self.linear_1(tokens)))

    @torch.no_grad()
    def start_at(self, scale: float, tokens: Float[Tensor, "*batch in_dim"]) -> None:
        """Scale the last layer so that these tokens come out with standard deviation `scale`.

        For `plain`, whose inputs have no fixed scale, give tokens of the encoder. Raises ValueError
        for tokens that are all alike.
        """
        projected = self(tokens.to(self.linear_1.weight)).float()
        found = projected.std()
        # Equal tokens may differ by rounding.
        if not found > 1e-5 * projected.abs().max():
            raise ValueError("the projector's scale is set on tokens that are all alike")
        factor = scale / found
        self.linear_2.weight.mul_(factor)
        self.linear_2.bias.mul_(factor)


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
