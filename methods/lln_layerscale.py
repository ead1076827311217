"""COMM's LLN-Layerscale: align each layer by a norm and a Linear, then mix them.

Jiang et al. 2023, arXiv:2310.08825: v = sum_l alpha_l Linear(LN(hs[l])), l = 1..L. No code was
released. We read alpha as weights that sum to one, as in their Layerscale, starting equal; whether
the layers share LN and Linear the paper leaves open, so there are both. Its second encoder, DINOv2,
is left out here.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, method


@method(
    "lln_layerscale",
    version=1,
    idea="layers aligned by norm and Linear, mixed",
    in_all=("shared",),
    variants={"shared": {"shared": True}, "per_layer": {"shared": False}},
    control="wide_projector-lln_layerscale",
    paper="COMM, arXiv:2310.08825",
    year=2023,
    parity="no official code",
    parameters="D*D + 3*D + L",
    details={
        "per_layer": {
            "parameters": "L*(D*D + 3*D + 1)",
            "control": "wide_projector-lln_layerscale-per_layer",
        }
    },
    switches={"shared": (True, False)},
)
class LLNLayerscale(Fusion):
    """`shared`: one LN and Linear for all layers, or one each."""

    def __init__(self, shape: StackShape, *, shared: bool = True) -> None:
        super().__init__(shape)
        self.taps = tuple((index,) for index in range(1, shape.layers + 1))
        self.align = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(shape.dim), nn.Linear(shape.dim, shape.dim))
            for _ in range(1 if shared else shape.layers)
        )
        self.scores = nn.Parameter(torch.zeros(shape.layers))

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Align and mix the patches of all blocks."""
        patches = hidden[:, :, self.shape.prefix :]
        weights = self.scores.softmax(dim=0)
        mixed = torch.zeros_like(patches[0])
        for index, layer in enumerate(patches):
            mixed = mixed + weights[index] * self.align[index % len(self.align)](layer)
        return Fused(tokens=mixed, trace={"layer_weights": weights.detach()})
