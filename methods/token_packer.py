"""TokenPacker: each coarse token looks at its own region of four concatenated layers.

Li et al., IJCV 2025, arXiv:2407.02392: queries are hs[L-1] shrunk bilinearly by `scale`; keys and
values are [hs 12; 16; 22; 23] under a two-layer MLP and a LayerNorm each; every query attends to
its scale x scale region alone, without a residual to the query, as in the official code. A quarter
of the tokens remains. Parameters bear their official names.
"""

import math

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import (
    CrossAttention,
    Fused,
    Fusion,
    StackShape,
    Unsupported,
    anchored,
    at_least,
    method,
)


@method(
    "token_packer",
    version=1,
    idea="coarse tokens look at their own region",
    control="wide_projector-token_packer",
    paper="arXiv:2407.02392",
    year=2025,
    parity="not compared: no recorded case",
    parameters="15*D*D + 14*D",
    switches={"layers": ("23", "12,16", "16,23"), "heads": (1, 4)},
)
class TokenPacker(Fusion):
    """`layers`: keys and values; `scale`: side of a region; `heads` as far as they divide."""

    needs_grid = True
    expected_failures = {
        "influence": "ln_k_1.bias, which is official, shifts all scores alike: the softmax is blind"
    }

    def __init__(
        self, shape: StackShape, *, layers: str = "12,16,22,23", scale: int = 2, heads: int = 8
    ) -> None:
        super().__init__(shape)
        at_least(1, scale=scale, heads=heads)
        if shape.grid[0] % scale or shape.grid[1] % scale:
            raise Unsupported(f"regions of {scale} x {scale} do not tile a grid of {shape.grid}")
        found = self.paper_taps(layers)
        self.seen, self.scale = len(found), scale
        self.taps, self.base = anchored(found, (shape.layer(-2),))
        dim = shape.dim
        self.q_proj_1 = nn.Linear(dim, dim, bias=False)
        self.k_proj_1, self.v_proj_1 = (
            nn.Sequential(nn.Linear(self.seen * dim, dim), nn.GELU(), nn.Linear(dim, dim))
            for _ in range(2)
        )
        self.ln_q_1, self.ln_k_1, self.ln_v_1 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.clip_attn = CrossAttention(dim, math.gcd(heads, dim))
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            # Officially `trunc_normal_`, cut at +-2, a hundred deviations away: the same law, but
            # how PyTorch draws it has changed between versions (2.11 and 2.14 differ).
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Point-to-region attention."""
        patches = hidden[:, :, self.shape.prefix :]
        joined = rearrange(patches[: self.seen], "tap b n d -> b n (tap d)")
        keys = self._regions(self.ln_k_1(self.k_proj_1(joined)))
        values = self._regions(self.ln_v_1(self.v_proj_1(joined)))
        asking = self.ln_q_1(self.q_proj_1(self._shrunk(patches[self.base])))
        found = self.clip_attn(rearrange(asking, "b n d -> (b n) 1 d"), keys, values)
        return Fused(tokens=rearrange(found, "(b n) 1 d -> b n d", b=patches.shape[1]))

    def _regions(
        self, tokens: Float[Tensor, "batch patch dim"]
    ) -> Float[Tensor, "region cell dim"]:
        """The cells of each region, regions of all images one after the other."""
        height, width = (side // self.scale for side in self.shape.grid)
        return rearrange(
            tokens,
            "b (y i x j) d -> (b y x) (i j) d",
            y=height,
            x=width,
            i=self.scale,
            j=self.scale,
        )

    def _shrunk(
        self, tokens: Float[Tensor, "batch patch dim"]
    ) -> Float[Tensor, "batch coarse dim"]:
        images = rearrange(tokens, "b (y x) d -> b d y x", y=self.shape.grid[0])
        size = [side // self.scale for side in self.shape.grid]
        small = F.interpolate(images, size=size, mode="bilinear")
        return rearrange(small, "b d y x -> b (y x) d")
