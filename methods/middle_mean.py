"""The mean of the middle blocks: what Dinomaly reconstructs to find anomalies.

Guo et al., CVPR 2025, arXiv:2405.14325: of 12 blocks those numbered 2..9 from 0, of 24 every second
one, 4, 6, ..., 18. In general y = mean of hs[floor(j L / 12) + 1] over j = 2..9; layers that
coincide on an encoder of fewer than 12 blocks count once. Dinomaly averages them too, in one group
or in two halves; its decoder and loss have no place here.
"""

from jaxtyping import Float
from torch import Tensor

from fusionbench.api import Fused, Fusion, StackShape, method

_BLOCKS = 12
_MIDDLE = range(2, 10)


@method(
    "middle_mean",
    version=1,
    idea="mean of eight middle layers",
    control="uniform_mean",
    paper="Dinomaly, arXiv:2405.14325",
    year=2025,
    parity="equations: no recorded case",
    parameters="0",
)
class MiddleMean(Fusion):
    """The mean of eight middle layers, without parameters."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        layers = (j * shape.layers // _BLOCKS + 1 for j in _MIDDLE)
        self.taps = (tuple(dict.fromkeys(layers)),)
        self.identity_at_init = self.taps == ((shape.layer(-2),),)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The patches of the engine's mean."""
        return Fused(tokens=self.patches(hidden[0]))
