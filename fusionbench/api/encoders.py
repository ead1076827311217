"""The one contract of all encoders: embed, then block by block; the final norm apart."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.types import StackShape


class Encoder(nn.Module, ABC):
    """A frozen vision transformer: its weights never change and get no gradient.

    `hs[0] = embed(images)`, `hs[i] = block(i, hs[i-1])` for i = 1..L, `norm(hs[L])` is what the
    native model calls its last hidden state.
    """

    shape: StackShape
    size: int
    """Side of the square input in pixels."""

    def freeze(self) -> None:
        """Switch off gradients of the weights and any training mode."""
        self.requires_grad_(False)
        self.eval()

    @abstractmethod
    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Resize to `size`, normalise, and give `hs[0]`."""

    @abstractmethod
    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index` (1..L) on these tokens; differentiable in the tokens."""

    @abstractmethod
    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The final norm."""

    @torch.no_grad()
    def hidden_states(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> list[Float[Tensor, "batch token dim"]]:
        """All of `hs[0..L]`."""
        states = [self.embed(images)]
        for index in range(1, self.shape.layers + 1):
            states.append(self.block(index, states[-1]))
        return states
