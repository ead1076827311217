"""Attentive layer fusion: one learned query looks at CLS and mean patch of every layer.

Ciernik et al., ICML 2026, arXiv:2601.09322: keys and values are the 2 L vectors, each under a
LayerNorm of its own; no biases before the output Linear, and heads twice as wide as usual. A
classification probe: it gives one token. Its BatchNorm and classifier are the reader's business
here, so that no image depends on its batch.
"""

import math

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, at_least, method


@method(
    "alf",
    version=1,
    idea="one query attends to all CLS and means",
    control="wide_projector-alf",
    paper="arXiv:2601.09322",
    year=2026,
    parity="deviates: without BatchNorm and classifier, which the reader replaces",
    parameters="8*D*D + 8*D",
    switches={"heads": (1, 4, 16)},
)
class ALF(Fusion):
    """`heads` is reduced to its largest common divisor with the width."""

    expected_failures = {
        "influence": "norm_k.bias, which is official, shifts all scores alike: the softmax is blind"
    }

    def __init__(self, shape: StackShape, *, heads: int = 8) -> None:
        super().__init__(shape)
        at_least(1, heads=heads)
        self.taps = tuple((index,) for index in range(1, shape.layers + 1))
        self.heads = math.gcd(heads, shape.dim)
        self.query_token = nn.Parameter(0.02 * torch.randn(shape.dim))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(shape.dim) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(shape.dim, 2 * shape.dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(2 * shape.dim, shape.dim)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """One token an image; the trace holds how much each layer was looked at."""
        seen = self._vectors(hidden)
        asking = self._split(self.q(self.norm_q(self.query_token))[None, None])
        keys, values = (
            self._split(self.k(self.norm_k(seen))),
            self._split(self.v(self.norm_v(seen))),
        )
        scores = torch.einsum("xhqd,bhsd->bhqs", asking, keys) / keys.shape[-1] ** 0.5
        looks = scores.softmax(dim=-1)
        mixed = rearrange(looks @ values, "b h q d -> b q (h d)")
        per_layer = reduce(looks.detach(), "b h q (kind tap) -> tap", "mean", tap=len(self.taps))
        kinds = seen.shape[1] // len(self.taps)
        return Fused(tokens=self.proj(mixed), trace={"layer_weights": kinds * per_layer})

    def _vectors(
        self, hidden: Float[Tensor, "tap batch token dim"]
    ) -> Float[Tensor, "batch vector dim"]:
        """Mean patches of all layers, in front of them the CLS tokens where there are some."""
        pooled = reduce(hidden[:, :, self.shape.prefix :], "tap b n d -> b tap d", "mean")
        if not self.shape.prefix:
            return pooled
        return torch.cat([rearrange(hidden[:, :, 0], "tap b d -> b tap d"), pooled], dim=1)

    def _split(self, vectors: Float[Tensor, "batch n inner"]) -> Float[Tensor, "batch head n part"]:
        return rearrange(vectors, "b n (h d) -> b h n d", h=self.heads)
