"""A small random transformer behind the encoder contract, and batches for it: no weights needed."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.encoders.contract import Encoder
from fusionbench.types import StackShape


class Block(nn.Module):
    """One head of attention and an MLP, pre-norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Linear(dim, 3 * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The block's output."""
        parts = self.mix(F.layer_norm(tokens, tokens.shape[-1:])).chunk(3, dim=-1)
        tokens = tokens + F.scaled_dot_product_attention(*parts)
        return tokens + self.mlp(F.layer_norm(tokens, tokens.shape[-1:]))


class ToyEncoder(Encoder):
    """Starts from `hs[0]`; there are no images. The weights are the same for every caller."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.shape, self.size = shape, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Block(shape.dim) for _ in range(shape.layers))
        self.freeze()

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Refuse: raises NotImplementedError."""
        raise NotImplementedError("the toy starts from hs[0]")

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, from 1."""
        return self.blocks[index - 1](tokens)

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """None."""
        return tokens

    @torch.no_grad()
    def states_from(
        self, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "state batch token dim"]:
        """`hs[0..L]` of these `hs[0]`."""
        states = [tokens]
        for index in range(1, self.shape.layers + 1):
            states.append(self.block(index, states[-1]))
        return torch.stack(states)


def draw(
    shape: StackShape, *, batch: int = 3, seed: int = 1
) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch query_dim"]]:
    """`hs[0]` and queries, standard normal."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, shape.tokens, shape.dim, generator=rng)
    return tokens, torch.randn(batch, shape.query_dim, generator=rng)
