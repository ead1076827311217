"""MRLA: layers attend to earlier layers, inside the encoder.

Fang et al., ICLR 2023, in the form for transformers. After block l, with xn = LN(x), queries and
keys from the mean patch, and V a depth-wise 3 x 3 convolution:
    light  out = sigmoid(q k / sqrt(d)) * GELU(V) + lambda * LN(o), o the block's input
    base   out = softmax over the layers since the last reset of (q k_j / sqrt(d)), times V_j
    x = x + g * [xn of CLS ; out]
The gate g, one number a block, is ours: it starts at zero, since the module would destroy the
features of a pretrained encoder. The first block after a reset has one key to choose from, so its
query is not built.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, InEncoderFusion, StackShape, at_least, method, one_of
from fusionbench.methods._sizes import inner_blocks
from fusionbench.methods._units import LayerAttention, LightLayerAttention, as_images, as_patches

_PERIOD = 4


class State(NamedTuple):
    """The tokens that entered the block; for the base form keys and values since the reset."""

    before: Float[Tensor, "batch token dim"]
    keys: tuple[Float[Tensor, "batch dim"], ...] = ()
    values: tuple[Float[Tensor, "batch dim y x"], ...] = ()


class Light(nn.Module):
    """Looks at the block's own value, and keeps a share of the block's input."""

    def __init__(self, dim: int, head: int) -> None:
        super().__init__()
        self.light = LightLayerAttention(dim, head=head, activated=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        images: Float[Tensor, "batch dim y x"],
        before: Float[Tensor, "batch patch dim"],
    ) -> Float[Tensor, "batch dim y x"]:
        """What is added to the patches."""
        return self.light(images, as_images(self.norm(before), images.shape[2]))


class Base(nn.Module):
    """Looks at the values of all blocks since the last reset."""

    def __init__(self, dim: int, head: int, *, first: bool) -> None:
        super().__init__()
        self.attention = LayerAttention(dim, head=head)
        if first:
            # One key leaves nothing to choose, so a query would never learn.
            self.attention.Wq = nn.Identity()

    def forward(self, images: Float[Tensor, "batch dim y x"], state: State) -> tuple[Tensor, State]:
        """What is added to the patches, and the state with this block in it."""
        query, key, value = self.attention(images)
        state = State(state.before, (*state.keys, key), (*state.values, value))
        scores = torch.stack([self.attention.agreement(query, each) for each in state.keys])
        found = torch.zeros_like(value)
        for weights, each in zip(scores.softmax(dim=0), state.values, strict=True):
            found = found + self.attention.spread(weights) * each
        return found, state


@method(
    "mrla",
    version=1,
    idea="blocks attend to earlier blocks",
    in_all=("light",),
    variants={"light": {"form": "light"}, "base": {"form": "base"}},
    control="none: the layers are joined only inside the encoder",
    paper="arXiv:2302.03985",
    year=2023,
    parity="deviates: a zero gate, so that a pretrained encoder survives",
    details={
        "light": {"parameters": "(L - 1)*(14*D + 11)", "published": 344304},
        "base": {"parameters": "(L - 1)*(11*D + 11) - 5*((L + 2)//4)", "published": 270576},
    },
    switches={"form": ("light", "base"), "head": (1, 64)},
)
class MRLA(InEncoderFusion):
    """`form`: "light" or "base"; `head`: channels of a head, as far as they divide the width."""

    needs_grid = True
    identity_at_init = True
    live_after_steps = 2

    def __init__(self, shape: StackShape, *, form: str = "light", head: int = 16) -> None:
        super().__init__(shape)
        at_least(1, head=head)
        self.form = one_of("form", form, ("light", "base"))
        # Only the penultimate layer is read.
        self.depth = inner_blocks(shape)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.dim) for _ in range(self.depth))
        self.gates = nn.Parameter(torch.zeros(self.depth))
        self.blocks = nn.ModuleList(
            Light(shape.dim, head)
            if form == "light"
            else Base(shape.dim, head, first=index % _PERIOD == 0)
            for index in range(self.depth)
        )

    def start(
        self,
        tokens: Float[Tensor, "batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> State:
        """Nothing but the input of block 1."""
        return State(tokens)

    def after_block(
        self, block: int, tokens: Float[Tensor, "batch token dim"], state: State
    ) -> tuple[Float[Tensor, "batch token dim"], State]:
        """Add what the layer found in earlier ones."""
        normed = self.norms[block - 1](tokens)
        images = as_images(self.patches(normed), self.shape.grid[0])
        if self.form == "light":
            found = self.blocks[block - 1](images, self.patches(state.before))
        else:
            fresh = (block - 1) % _PERIOD == 0
            found, state = self.blocks[block - 1](images, State(tokens) if fresh else state)
        added = torch.cat([normed[:, : self.shape.prefix], as_patches(found)], dim=1)
        moved = tokens + self.gates[block - 1] * added
        return moved, state._replace(before=moved)

    def finish(self, tokens: Float[Tensor, "batch token dim"], state: State) -> Fused:
        """The patches of the modified block L-1; the gates are the trace."""
        return Fused(tokens=self.patches(tokens), trace={"gate": self.gates.detach()})
