"""QLadder: learned queries climb the encoder's layers and join the image's tokens.

Sun et al. 2024 (Arcana), arXiv:2410.13733. With K queries q[0] ~ N(0, 1), for l = 1..L-1
    u    = q[l-1] + XAttn( LN0 q[l-1], LN1 hs[l-1] )
    q[l] = u + MLP( LN2 u )
and the reader sees the tokens [hs[L-1] patches ; q[L-1]]. XAttn sees all tokens of a state, CLS
too. The official code has a rung of its own for each of the 24 layers (the last one unused), 302 M
parameters, and K = 64; here one rung serves all (`shared`), 12.6 M, and K = 16. MLP has CLIP's
QuickGELU. `repeat`, the control, reads hs[L-1] in every rung.
"""

import math
from collections.abc import Mapping

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import (
    CrossAttention,
    Fused,
    Fusion,
    StackShape,
    Unsupported,
    anchored,
    at_least,
    matched,
    method,
)

_PARTS = (
    *(f"layer_norm{number}" for number in range(3)),
    *(f"cross_attn.{part}_proj" for part in ("q", "k", "v", "out")),
    *(f"mlp.fc{number}" for number in (1, 2)),
)
_OFFICIAL = tuple(f"{part}.{kind}" for part in _PARTS for kind in ("weight", "bias"))
"""Names of a rung's weights in the official code."""


class Rung(nn.Module):
    """Cross-attention from the queries to one hidden state, and an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.layer_norm0, self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.cross_attn = CrossAttention(dim, heads)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(
        self, queries: Float[Tensor, "batch query dim"], state: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch query dim"]:
        """The queries one rung higher."""
        seen = self.layer_norm1(state)
        queries = queries + self.cross_attn(self.layer_norm0(queries), seen, seen)
        return queries + self.fc2(self._quick_gelu(self.fc1(self.layer_norm2(queries))))

    def _quick_gelu(
        self, x: Float[Tensor, "batch query inner"]
    ) -> Float[Tensor, "batch query inner"]:
        return x * torch.sigmoid(1.702 * x)


@method(
    "qladder",
    version=1,
    idea="learned queries climb the layers",
    variants={"": {}, "repeat": {"repeat": True}},
    in_all=("",),
    control="qladder-repeat",
    paper="Arcana, arXiv:2410.13733",
    year=2024,
    parity="deviates: the exact rung; official are shared=false, queries=64",
    parameters="12*D*D + 15*D + queries*D",
    details={"repeat": {"parity": "deviates: its matched control, of ours"}},
    switches={"shared": (False,), "queries": (8, 64, 256), "repeat": (True,)},
)
class QLadder(Fusion):
    """`queries`: K; `shared`: one rung for all layers; `heads` as far as they divide the width.

    Tokens: [batch (patch + K) dim]. Raises Unsupported for an encoder of one block.
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        queries: int = 16,
        shared: bool = True,
        heads: int = 16,
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        at_least(1, queries=queries, heads=heads)
        if shape.layers < 2:
            raise Unsupported("qladder has L-1 rungs, but this encoder has one block")
        self.steps = shape.layers - 1
        read = () if repeat else tuple((layer,) for layer in range(self.steps))
        self.taps, self.base = anchored(read, (shape.layer(-2),))
        self.rows = [self.base] * self.steps if repeat else list(range(self.steps))
        self.qladder_embeds = nn.Parameter(torch.randn(queries, shape.dim))
        self.rungs = nn.ModuleList(
            Rung(shape.dim, math.gcd(heads, shape.dim)) for _ in range(1 if shared else self.steps)
        )

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The patches of the penultimate layer, then the queries."""
        asked = repeat(self.qladder_embeds, "k d -> b k d", b=hidden.shape[1])
        for step, row in enumerate(self.rows):
            asked = self.rungs[step % len(self.rungs)](asked, hidden[row])
        return Fused(tokens=torch.cat([self.patches(hidden[self.base]), asked], dim=1))

    def load_official(self, weights: Mapping[str, Tensor]) -> None:
        """As in the base class; ValueError for a shared rung, which the official code has not."""
        self._require_rungs()
        own = {"qladder_embeds": matched(("qladder_embeds",), weights)["qladder_embeds"][0]}
        for step in range(self.steps):
            official = f"LadderAdapters.{step}."
            found = matched([official + name for name in _OFFICIAL], weights)
            parts = {name: found[official + name] for name in _OFFICIAL}
            for kind in ("weight", "bias"):
                packed = [parts.pop(f"cross_attn.{part}_proj.{kind}") for part in "qkv"]
                own[f"rungs.{step}.cross_attn.in_proj_{kind}"] = torch.cat(packed)
            own |= {f"rungs.{step}.{k.removeprefix('mlp.')}": v for k, v in parts.items()}
        self.load_state_dict(own)

    def official_weights(self) -> dict[str, Tensor]:
        """As in the base class; ValueError for a shared rung, which the official code has not."""
        self._require_rungs()
        found = {"qladder_embeds": self.qladder_embeds.detach()[None]}
        for step, rung in enumerate(self.rungs):
            own = rung.state_dict()
            for kind in ("weight", "bias"):
                packed = own.pop(f"cross_attn.in_proj_{kind}").chunk(3)
                own |= {
                    f"cross_attn.{p}_proj.{kind}": w for p, w in zip("qkv", packed, strict=True)
                }
            for name in _OFFICIAL:
                found[f"LadderAdapters.{step}.{name}"] = own[name.removeprefix("mlp.")]
        return found

    def _require_rungs(self) -> None:
        """Raise ValueError where one rung serves all layers."""
        if len(self.rungs) != self.steps:
            raise ValueError("the official code has a rung for each layer; set shared=False")
