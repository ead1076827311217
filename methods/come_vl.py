"""CoME-VL's orthogonal layer mix, for one encoder.

arXiv:2604.03231: y = sum_l softmax(w)_l O_1 LN(hs[l]), then O_2 LN(y), with orthogonal maps and one
LayerNorm shared by all layers and both stages. Its second encoder and the cross-attention between
the two are left out here.
"""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import Fused, Fusion, StackShape, method


class Orthogonal(nn.Module):
    """A bias-free square map that stays orthogonal: a random one times exp of a skew matrix.

    Written out, since modules under PyTorch's own parametrisation cannot be pickled.
    """

    start: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.skew = nn.Parameter(torch.zeros(dim, dim))
        self.register_buffer("start", nn.init.orthogonal_(torch.empty(dim, dim)))

    def forward(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Rotate every token."""
        lower = self.skew.float().tril(-1)
        # The exponential is a long series, which bfloat16 turns into NaN.
        turned = self.start.float() @ torch.matrix_exp(lower - lower.mT)
        return F.linear(tokens, turned.to(tokens.dtype))


@method(
    "come_vl",
    version=1,
    idea="layers mixed between two rotations",
    control="uniform_mean",
    unmatched="parameters: the mean is the same mix without what is trained",
    paper="arXiv:2604.03231",
    year=2026,
    parity="deviates: one encoder instead of two; not compared",
    parameters="2*D*D + 2*D + L",
)
class CoMEVL(Fusion):
    """All blocks' outputs, mixed between two rotations."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = tuple((index,) for index in range(1, shape.layers + 1))
        self.scores = nn.Parameter(torch.zeros(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)
        self.inner, self.outer = Orthogonal(shape.dim), Orthogonal(shape.dim)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Mix, rotate, normalise, rotate; O_1 commutes with the sum over layers."""
        normed = self.norm(hidden[:, :, self.shape.prefix :])
        weights = self.scores.softmax(dim=0)
        mixed = reduce(normed * weights[:, None, None, None], "tap b n d -> b n d", "sum")
        tokens = self.outer(self.norm(self.inner(mixed)))
        return Fused(tokens=tokens, trace={"layer_weights": weights.detach()})
