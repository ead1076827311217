"""A model of a library, run block by block through its own modules.

What a library passes to its blocks beside the tokens (rotary position embeddings, masks) depends on
the input size only, never on the image: it is computed once and handed to each block again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.types import StackShape
from fusionbench.encoders.preprocessing import Preprocessing
from fusionbench.encoders.vit import prepare


class Keywords(nn.Module):
    """Keyword arguments of a block; tensors and tuples of tensors move and cast with the encoder.

    They are buffers that no `state_dict` contains.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self.plain = {name: value for name, value in values.items() if not _tensors(value)}
        self.parts: dict[str, list[str]] = {}
        for name in values.keys() - self.plain.keys():
            tensors = _tensors(values[name])
            self.parts[name] = [f"{name}_{place}" for place in range(len(tensors))]
            for part, tensor in zip(self.parts[name], tensors, strict=True):
                self.register_buffer(part, tensor.detach(), persistent=False)
        self.single = {name for name, value in values.items() if isinstance(value, Tensor)}

    def forward(self) -> dict[str, Any]:
        """The arguments, with each tensor in the encoder's type and on its device."""
        found = dict(self.plain)
        for name, parts in self.parts.items():
            tensors = tuple(getattr(self, part) for part in parts)
            found[name] = tensors[0] if name in self.single else tensors
        return found


def _tensors(value: object) -> list[Tensor]:
    return [one for one in (value if isinstance(value, tuple) else (value,))
            if isinstance(one, Tensor)]  # fmt: skip


class Stepped(Encoder):
    """Blocks and final norm of a model; a subclass computes `hs[0]`.

    The shape is `rotary` where a block gets tensors beside the tokens: they hold a row per token.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        keywords: Sequence[Mapping[str, Any]],
        *,
        shape: StackShape,
        size: int,
        images: Preprocessing,
    ) -> None:
        super().__init__()
        # First of all lists of modules: whoever compiles blocks takes the first of this length.
        self.blocks = nn.ModuleList(blocks)
        self.final = norm
        rotary = any(_tensors(value) for values in keywords for value in values.values())
        self.shape = replace(shape, rotary=shape.rotary or rotary)
        self.size, self.images = size, images
        self.mean, self.std = images.mean, images.std
        # Blocks that get the same tensors share them.
        kept: dict[tuple[tuple[str, int], ...], Keywords] = {}
        for values in keywords:
            kept.setdefault(_key(values), Keywords(values))
        self.keywords = nn.ModuleList(kept[_key(values)] for values in keywords)

    def pixels(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch 3 size size"]:
        """Pixel values in the type of the weights."""
        dtype = next(self.blocks.parameters()).dtype
        return prepare(images, size=self.size, dtype=dtype, **asdict(self.images))

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, counted from 1, without a mask."""
        return self.blocks[index - 1](tokens, **self.keywords[index - 1]())

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The model's final norm; the identity in models that have none or norm after pooling."""
        return self.final(tokens)


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple(
        (name, id(one)) for name, value in values.items() for one in (_tensors(value) or [value])
    )


class Passage(nn.Module):
    """Stands in for a block: returns its tokens and keeps the keyword arguments it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}

    def forward(self, tokens: Tensor, **given: Any) -> Tensor:
        """The tokens, unchanged."""
        self.given = given
        return tokens


@torch.no_grad()
def blank(size: int, like: nn.Module) -> Float[Tensor, "1 3 size size"]:
    """Pixel values of one black image, of the type and on the device of the model's weights."""
    first = next(like.parameters())
    return torch.zeros(1, 3, size, size, dtype=first.dtype, device=first.device)
