"""MoL, a mixture of layers: the text routes each image or each patch to a few layers.

Kim, Stoica et al. 2026 (project page; no code was released, and the equations come from a copy of
the text). With q = W_Q t, k = W_K h and s = q k / sqrt(d):
    layer   p_g = softmax_l(mean_n s), one set of weights an image
    patch   p_p = softmax_l(s), one a patch
    hybrid  p ~ p_g^(1-b) p_p^b with b = sigmoid(w t + b0)
The `top` largest weights are kept and renormalised, and a reserve goes to the penultimate layer:
(1 - g) sum_l p_l hs[l] + g hs[L-1]. In the hybrid form g = sigmoid(w_d KL(p_p || p_g) + b_d);
elsewhere the text gives no formula, and g is one learned number. Their temperature schedule is left
out. Of the load balance it gives the weight only: here L times sum_l mean(p_l)^2, where Switch
(Fedus et al. 2022) has the share of routed tokens in place of one of the two factors.
"""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, at_least, method, one_of

_TINY = 1e-8


@method(
    "mol",
    version=1,
    idea="the text routes images or patches to layers",
    in_all=("patch",),
    variants={"layer": {"form": "layer"}, "patch": {"form": "patch"}, "hybrid": {"form": "hybrid"}},
    control="uniform_mean",
    unmatched="parameters: the mean is the same mix without what is trained",
    year=2026,
    parity="no official code",
    parameters="width*(Q + D) + 1",
    details={"hybrid": {"parameters": "width*(Q + D) + 1 + Q + 2"}},
    switches={
        "form": ("layer", "patch", "hybrid"),
        "balance": (0.0,),
        "top": (1, 2, 8),
        "width": (16, 256),
    },
)
class MoL(Fusion):
    """`form`: "layer", "patch" or "hybrid"; `width`: d of the router; `balance`: its loss."""

    needs_query = True

    def __init__(
        self,
        shape: StackShape,
        *,
        form: str = "patch",
        width: int = 64,
        top: int = 4,
        balance: float = 0.01,
    ) -> None:
        super().__init__(shape)
        at_least(1, width=width, top=top)
        at_least(0, balance=balance)
        if not shape.query_dim:
            raise ValueError("mol needs a question's vector, but query_dim is 0")
        self.taps = tuple((index,) for index in range(1, shape.layers + 1))
        self.form = one_of("form", form, ("layer", "patch", "hybrid"))
        self.top, self.balance = min(top, shape.layers), balance
        self.reserve = max(shape.layers - 2, 0)
        self.query = nn.Linear(shape.query_dim, width, bias=False)
        self.key = nn.Linear(shape.dim, width, bias=False)
        self.kept = nn.Parameter(torch.zeros(()))
        if form == "hybrid":
            self.trust = nn.Linear(shape.query_dim, 1)
            self.divergence = nn.Parameter(torch.ones(()))

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Route the patches over the layers."""
        patches = hidden[:, :, self.shape.prefix :]
        asked = self.query(query) / self.query.out_features**0.5
        # In float32: under autocast many weights would be equal, and more than `top` the largest.
        scores = einsum(self.key(patches), asked, "tap b n r, b r -> b n tap")
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights, kept = self._route(scores, query)
        kept = kept.to(patches.dtype)
        largest = self._largest(weights).to(patches.dtype)
        mixed = einsum(patches, largest, "tap b n d, b n tap -> b n d")
        mean = weights.mean(dim=(0, 1))
        return Fused(
            tokens=mixed + kept * (patches[self.reserve] - mixed),
            losses={"balance": self.balance * len(mean) * (mean**2).sum()},
            trace={"layer_weights": mean.detach()},
        )

    def _route(
        self, scores: Float[Tensor, "batch patch tap"], query: Float[Tensor, "batch query_dim"]
    ) -> tuple[Float[Tensor, "batch patch tap"], Float[Tensor, "batch patch 1"]]:
        """Weights before the choice of the largest, and the share of the reserve."""
        image = scores.mean(dim=1, keepdim=True).log_softmax(dim=-1).expand_as(scores)
        patch = scores.log_softmax(dim=-1)
        if self.form != "hybrid":
            kept = self.kept.sigmoid().expand_as(scores[..., :1])
            return (image if self.form == "layer" else patch).exp(), kept
        trust = self.trust(query).sigmoid()[:, None]
        both = (image + trust * (patch - image)).softmax(dim=-1)
        apart = (patch.exp() * (patch - image)).sum(dim=-1, keepdim=True)
        return both, (self.divergence * apart + self.kept).sigmoid()

    def _largest(
        self, weights: Float[Tensor, "batch patch tap"]
    ) -> Float[Tensor, "batch patch tap"]:
        values, places = weights.topk(self.top, dim=-1)
        chosen = torch.zeros_like(weights).scatter(-1, places, values)
        return chosen / (chosen.sum(dim=-1, keepdim=True) + _TINY)
