"""Attention residuals as a read-out: a softmax over layers for each token, by one learned query.

Kimi Team 2026, arXiv:2603.15031, read from notes and re-implementations since the official
repository could not be had. For token n and layer l = 1..L
    e[l,n] = w . RMSNorm(v[l,n]);    a = softmax_l(e);    y[n] = sum_l a[l,n] v[l,n]
with w = 0 at the start, so that y starts as the plain mean. In the paper v[l] is the output of
sublayer l of a trained language model and the sum is the input of the next one; here v[l] = hs[l]
of the frozen encoder (`values` "states"), or what block l added (`values` "updates":
v[l] = hs[l] - hs[l-1], and v[0] = hs[0]).
"""

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, method, one_of

_EPS = 1e-6


@method(
    "attnres",
    version=1,
    idea="softmax over layers for each token",
    control="uniform_mean",
    unmatched="parameters: the mean is the same mix without what is trained",
    paper="Attention Residuals, arXiv:2603.15031",
    year=2026,
    parity="equations: a read-out of frozen layers, not a residual of trained ones",
    parameters="2*D",
    switches={"first": (0,), "values": ("updates",)},
    idle=(({"values": "updates"}, ("first",)),),
)
class AttnRes(Fusion):
    """`first`: the lowest hidden state, 1 or 0; `values`: "states" or "updates" (these from 0)."""

    live_after_steps = 2

    def __init__(self, shape: StackShape, *, first: int = 1, values: str = "states") -> None:
        super().__init__(shape)
        self.values = one_of("values", values, ("states", "updates"))
        lowest = 0 if values == "updates" else shape.layer(first)
        self.taps = tuple((index,) for index in range(lowest, shape.layers + 1))
        self.gain = nn.Parameter(torch.ones(shape.dim))
        self.query = nn.Parameter(torch.zeros(shape.dim))

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Mix the patches; the trace is the mean weight of each layer."""
        values = hidden[:, :, self.shape.prefix :]
        if self.values == "updates":
            values = torch.cat([values[:1], values[1:] - values[:-1]])
        # By hand: fused kernels of RMSNorm differ between devices in what vmap can do.
        scale = torch.rsqrt(values.square().mean(dim=-1) + _EPS)
        scores = scale * einsum(values, self.gain * self.query, "tap b n d, d -> tap b n")
        weights = scores.softmax(dim=0)
        mixed = einsum(values, weights, "tap b n d, tap b n -> b n d")
        mean = reduce(weights.detach(), "tap b n -> tap", "mean")
        return Fused(tokens=mixed, trace={"layer_weights": mean})
