"""A learned weighted sum of all blocks' outputs.

Scalar mix (ELMo; Peters et al., NAACL 2018, eq. 1): y = gamma * sum_l softmax(s)_l hs[l], over
l = 1..L, starting from the plain mean. Without a norm the layers of large norm dominate, so the
mix of layer-normed states is a variant of its own. `one_hot` has free weights that start at the
penultimate layer (DenseFormer's start, Pagliardini et al. 2024), `per_channel` a softmax over
layers for each channel, without gamma. `superb` is the Featurizer of s3prl (SUPERB; Yang et al.,
Interspeech 2021): y = sum_l softmax(w)_l hs[l] over l = 0..L, w = 0 at the start, without gamma.
"""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import Fused, Fusion, StackShape, method, one_of


@method(
    "scalar_mix",
    version=1,
    idea="learned weighted sum of all layers",
    variants={
        "": {},
        "norm": {"norm": True},
        "one_hot": {"weights": "one_hot"},
        "per_channel": {"weights": "per_channel"},
        "superb": {"weights": "superb"},
    },
    control="uniform_mean",
    unmatched="parameters: the mean is the same mix without what is trained",
    paper="ELMo, arXiv:1802.05365",
    year=2018,
    parity="no official code for vision encoders",
    parameters="L + 1",
    details={
        "one_hot": {"parameters": "L", "identity": True},
        "per_channel": {"parameters": "L*D"},
        "superb": {
            "paper": "SUPERB, arXiv:2105.01051",
            "year": 2021,
            "parity": "equations: no recorded case",
        },
    },
    switches={"weights": ("one_hot", "per_channel", "superb"), "norm": (True,)},
)
class ScalarMix(Fusion):
    """`weights`: "softmax" (one each, and gamma), "one_hot" (free), "per_channel", "superb"."""

    def __init__(self, shape: StackShape, *, weights: str = "softmax", norm: bool = False) -> None:
        super().__init__(shape)
        self.weights = one_of("weights", weights, ("softmax", "one_hot", "per_channel", "superb"))
        first = 0 if weights == "superb" else 1
        self.taps = tuple((index,) for index in range(first, shape.layers + 1))
        self.norm = norm
        columns = (shape.dim,) if weights == "per_channel" else ()
        self.scores = nn.Parameter(torch.zeros(len(self.taps), *columns))
        if weights == "one_hot":
            nn.init.ones_(self.scores[max(shape.layers - 2, 0)])
        self.gamma = nn.Parameter(torch.ones(())) if weights == "softmax" else None
        self.identity_at_init = weights == "one_hot" and not norm and shape.layers > 1

    def layer_weights(self) -> Float[Tensor, "tap *channel"]:
        """The weights in use, without gamma."""
        return self.scores if self.weights == "one_hot" else self.scores.softmax(dim=0)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Mix the patches of all taps."""
        patches = hidden[:, :, self.shape.prefix :]
        if self.norm:
            patches = F.layer_norm(patches, patches.shape[-1:])
        weights = self.layer_weights()
        columns = weights if weights.ndim == 2 else weights[:, None]
        mixed = reduce(patches * columns[:, None, None], "tap b n d -> b n d", "sum")
        if self.gamma is not None:
            mixed = self.gamma * mixed
        return Fused(tokens=mixed, trace={"layer_weights": columns.detach().mean(dim=1)})
