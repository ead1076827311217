"""Ladder side tuning: a narrow transformer beside the frozen one, fed by every block.

Sung et al., NeurIPS 2022, arXiv:2206.06522, on frozen hidden states only, so that no gradient
passes the encoder. With d' = D / reduction, and without biases in every W,
    s[0] = W[0] hs[0]
    s[l] = Side_l( g[l] s[l-1] + (1 - g[l]) W[l] hs[l] ),   g[l] = sigmoid(a[l] / 0.1),  a = 0
    y    = W_up s[L]
As in the official code y replaces the encoder's output. Deviations: the side blocks start at
random, where the paper copies a pruned encoder, and are pre-norm as in a ViT, where the code has
those of its language models. `repeat`, the control, reads hs[L-1] in place of every state.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import CrossAttention, Fused, Fusion, StackShape, Unsupported, at_least, method

_TEMPERATURE = 0.1
_NARROWEST = 2


class SideBlock(nn.Module):
    """A pre-norm transformer block with an MLP of four times its width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CrossAttention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Attention over the image's own tokens, then the MLP."""
        seen = self.norm1(x)
        x = x + self.attn(seen, seen, seen)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


@method(
    "lst",
    version=1,
    idea="a narrow side network reads every block",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="lst-repeat",
    paper="arXiv:2206.06522",
    year=2022,
    parity="equations: pre-norm side blocks that start at random",
    parameters=(
        "L*(12*(D//reduction)**2 + 13*(D//reduction) + D*(D//reduction) + 1) + 2*D*(D//reduction)"
    ),
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"gated": (False,), "every": (2, 3), "reduction": (2, 4, 16), "repeat": (True,)},
)
class LST(Fusion):
    """`reduction`: D / d'; `heads` as far as they divide d'; `every`: a side block per so many.

    With `every` k blocks L, L - k, L - 2 k, ... have a side block and are read. `gated` False:
    Side_l( s[l-1] + W[l] hs[l] ). Raises Unsupported where d' is below 2.
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        reduction: int = 8,
        heads: int = 16,
        every: int = 1,
        gated: bool = True,
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        at_least(1, reduction=reduction, heads=heads, every=every)
        self.layers = [0, *range((shape.layers - 1) % every + 1, shape.layers + 1, every)]
        width = shape.dim // reduction
        if width < _NARROWEST:
            raise Unsupported(f"a side network of width {width}: LayerNorm needs {_NARROWEST}")
        base = shape.layer(-2)
        self.taps = ((base,),) if repeat else tuple((layer,) for layer in self.layers)
        self.rows = [0] * len(self.layers) if repeat else list(range(len(self.layers)))
        self.downs = nn.ModuleList(nn.Linear(shape.dim, width, bias=False) for _ in self.layers)
        steps = len(self.layers) - 1
        self.blocks = nn.ModuleList(SideBlock(width, math.gcd(heads, width)) for _ in range(steps))
        self.gates = nn.Parameter(torch.zeros(steps)) if gated else None
        self.up = nn.Linear(width, shape.dim, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Climb the ladder with all tokens; the trace is g, the share of the side network."""
        states = [down(hidden[row]) for down, row in zip(self.downs, self.rows, strict=True)]
        side = states[0]
        gates = None if self.gates is None else torch.sigmoid(self.gates / _TEMPERATURE)
        for step, block in enumerate(self.blocks):
            if gates is None:
                side = block(side + states[step + 1])
            else:
                side = block(gates[step] * side + (1 - gates[step]) * states[step + 1])
        trace = {} if gates is None else {"gate": gates.detach()}
        return Fused(tokens=self.up(self.patches(side)), trace=trace)
