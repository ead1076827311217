"""LLaVA-STF: eight layers squeezed into one, then neighbouring tokens joined.

arXiv:2506.07138: c = [hs 23; 21; 18; 15; 12; 9; 6; 3] -> Linear(8D, 4D), GELU, Linear(4D, D), then
each 2 x 2 neighbourhood side by side, 4D wide: a quarter of the tokens. Their projector is 16D
wide inside; here it is the one that every method has.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, Unsupported, method

_SIDE = 2


@method(
    "llava_stf",
    version=1,
    idea="eight layers squeezed, neighbours joined",
    control="wide_projector-llava_stf",
    paper="arXiv:2506.07138",
    year=2025,
    parity="deviates: the common projector instead of one of width 16D; not compared",
    parameters="36*D*D + 5*D + 3*D*H",
    published=151012352,
)
class LlavaSTF(Fusion):
    """`layers`: the ones that are squeezed, in this order."""

    needs_grid = True

    def __init__(self, shape: StackShape, *, layers: str = "23,21,18,15,12,9,6,3") -> None:
        super().__init__(shape)
        if shape.grid[0] % _SIDE or shape.grid[1] % _SIDE:
            raise Unsupported(f"neighbourhoods of 2 x 2 do not tile a grid of {shape.grid}")
        self.taps = self.paper_taps(layers)
        wide = len(self.taps) * shape.dim
        self.squeeze = nn.Sequential(
            nn.Linear(wide, wide // 2), nn.GELU(), nn.Linear(wide // 2, shape.dim)
        )
        self.out_dim = _SIDE**2 * shape.dim

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Squeeze the channels, then join the neighbours."""
        joined = rearrange(hidden[:, :, self.shape.prefix :], "tap b n d -> b n (tap d)")
        height, width = (side // _SIDE for side in self.shape.grid)
        tokens = rearrange(
            self.squeeze(joined),
            "b (y i x j) d -> b (y x) (i j d)",
            y=height,
            x=width,
            i=_SIDE,
            j=_SIDE,
        )
        return Fused(tokens=tokens)
