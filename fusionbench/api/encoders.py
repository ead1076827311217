"""Interface of frozen encoders: embedding, blocks, final norm."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.linears import Delta, added, blocks_of, linears_of
from fusionbench.api.types import StackShape, Unsupported


class Encoder(nn.Module, ABC):
    """A frozen vision transformer: its weights never change and get no gradient.

    `hs[0] = embed(images)`, `hs[i] = block(i, hs[i-1])` for i = 1..L, `norm(hs[L])` equals the
    last hidden state of the original model.
    """

    shape: StackShape
    size: int
    """Side of the square input in pixels."""

    def freeze(self) -> None:
        """Disable gradients of the weights and switch to evaluation mode."""
        self.requires_grad_(False)
        self.eval()

    @abstractmethod
    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """`hs[0]` of images that are resized to `size` and normalised."""

    @abstractmethod
    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index` (1..L) on these tokens; differentiable in the tokens."""

    @abstractmethod
    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The final norm."""

    def linears(self, index: int) -> Mapping[str, nn.Linear]:
        """The linear layers of block `index` by name (`api.linears`); empty: out of reach."""
        blocks = blocks_of(self, self.shape.layers)
        return linears_of(blocks[index - 1]) if blocks else {}

    @property
    def mlp(self) -> int:
        """Hidden width of the blocks' MLPs, 0 if their linear layers are out of reach."""
        found = self.linears(1)
        return found["fc1"].out_features if found else 0

    def adapted(
        self, index: int, tokens: Float[Tensor, "batch token dim"], delta: Delta
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index` with `delta(layer, input)` added to each linear layer's output.

        Raises Unsupported if the layers are out of reach.
        """
        linears = self.linears(index)
        if not linears:
            raise Unsupported("the linear layers of this encoder's blocks are out of reach")
        with added(linears, delta):
            return self.block(index, tokens)

    @torch.no_grad()
    def hidden_states(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> list[Float[Tensor, "batch token dim"]]:
        """`hs[0..L]`, without gradients."""
        states = [self.embed(images)]
        for index in range(1, self.shape.layers + 1):
            states.append(self.block(index, states[-1]))
        return states
