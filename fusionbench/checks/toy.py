"""A small random transformer behind the encoder contract, and batches for it: no weights needed."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoder import Encoder
from fusionbench.api.types import StackShape


class ToyEncoder(Encoder):
    """Pre-norm blocks of one head and an MLP; checks start it from `hs[0]`, images do as well.

    The weights are the same for every caller; those of all blocks lie in one tensor of each kind,
    since checks build hundreds of these.
    """

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        self.shape, self.size = shape, max(shape.grid)
        rng = torch.Generator().manual_seed(0)

        def drawn(rows: int, columns: int) -> nn.Parameter:
            # The spread of torch's own Linear.
            weights = torch.randn(shape.layers, rows, columns, generator=rng)
            return nn.Parameter(weights / (3 * columns) ** 0.5)

        self.mix = drawn(3 * shape.dim, shape.dim)
        self.widen, self.narrow = drawn(2 * shape.dim, shape.dim), drawn(shape.dim, 2 * shape.dim)
        self.freeze()

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Mean colour of each patch, repeated over the channels; prefix tokens are zero."""
        pixels = rearrange(images.float() / 255, "b h w c -> b c h w")
        colours = F.adaptive_avg_pool2d(pixels, self.shape.grid)
        patches = repeat(colours, "b c y x -> b (y x) (k c)", k=-(-self.shape.dim // 3))
        return F.pad(patches[..., : self.shape.dim], (0, 0, self.shape.prefix, 0))

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, from 1."""
        query, key, value = F.linear(_normed(tokens), self.mix[index - 1]).chunk(3, dim=-1)
        tokens = tokens + F.scaled_dot_product_attention(query, key, value)
        widened = F.gelu(F.linear(_normed(tokens), self.widen[index - 1]))
        return tokens + F.linear(widened, self.narrow[index - 1])

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Without scale and shift."""
        return _normed(tokens)

    @torch.no_grad()
    def states_from(
        self, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "state batch token dim"]:
        """`hs[0..L]` of these `hs[0]`, and behind them `hs[L]` after the final norm."""
        states = [tokens]
        for index in range(1, self.shape.layers + 1):
            states.append(self.block(index, states[-1]))
        return torch.stack([*states, self.norm(states[-1])])


def _normed(tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
    return F.layer_norm(tokens, tokens.shape[-1:])


def draw(
    shape: StackShape, *, batch: int = 3, seed: int = 1
) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch query_dim"]]:
    """`hs[0]` and queries, standard normal."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, shape.tokens, shape.dim, generator=rng)
    return tokens, torch.randn(batch, shape.query_dim, generator=rng)
