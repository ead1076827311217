"""MMFuser: the final feature asks several earlier ones, by deformable attention.

Cao et al. 2024, arXiv:2410.11829, with hs 3, 8, 13, 18 as keys and hs[23] as the query:
    A   = MSDA(LN_q(Q), LN_f(F))      one map per level; LN_f is shared by all of them
    A2  = MSDA(LN_1(A), LN_1(A))      on the one fused map
    out = Q + gamma1 * (A + gamma2 * A2)
Both gammas start at zero. LSF's external-modular fusion (Lin et al., CVPR 2025) is the same block
with other keys. Sampling is pure PyTorch (`grid_sample`), Deformable DETR's (Zhu et al. 2021).
"""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import Fused, Fusion, StackShape, anchored, at_least, method

Sizes = tuple[tuple[int, int], ...]


class MSDeformAttn(nn.Module):
    """Deformable attention over `levels` maps; parameters bear their official names."""

    def __init__(self, dim: int, *, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj, self.output_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.sampling_offsets.bias = nn.Parameter(self._rings())

    def _rings(self) -> Float[Tensor, " offset"]:
        """Head h looks in its own direction, on a square; point p at p + 1 pixels."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ways = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ways = ways / ways.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        rings = ways[:, None, None] * steps[None, None, :, None]
        return repeat(rings, "h 1 p xy -> (h l p xy)", l=self.levels)

    def forward(
        self,
        query: Float[Tensor, "batch asked dim"],
        reference: Float[Tensor, "asked 2"],
        value: Float[Tensor, "batch seen dim"],
        sizes: Sizes,
    ) -> Float[Tensor, "batch asked dim"]:
        """`sizes`: height x width of each level; `reference` in 0..1, x to the right, y down."""
        split = {"h": self.heads, "l": self.levels, "p": self.points}
        offsets = rearrange(
            self.sampling_offsets(query), "b n (h l p xy) -> b h l n p xy", xy=2, **split
        )
        weights = rearrange(
            self.attention_weights(query), "b n (h lp) -> b h n lp", h=self.heads
        ).softmax(dim=-1)
        weights = rearrange(weights, "b h n (l p) -> b h l n p", l=self.levels)
        maps = self.value_proj(value).split([height * width for height, width in sizes], dim=1)
        seen = [
            self._sample(each, size, reference[:, None] + _shares(offsets[:, :, level], size))
            for level, (each, size) in enumerate(zip(maps, sizes, strict=True))
        ]
        mixed = torch.einsum("bhlnp,lbhdnp->bnhd", weights, torch.stack(seen))
        return self.output_proj(rearrange(mixed, "b n h d -> b n (h d)"))

    def _sample(
        self,
        tokens: Float[Tensor, "batch patch dim"],
        size: tuple[int, int],
        places: Float[Tensor, "batch head asked point 2"],
    ) -> Float[Tensor, "batch head channel asked point"]:
        """Bilinear, zero outside; in float32, since places need its precision."""
        images = rearrange(tokens, "b (y x) (h d) -> (b h) d y x", y=size[0], h=self.heads)
        grid = rearrange(2 * places - 1, "b h n p xy -> (b h) n p xy")
        seen = F.grid_sample(images.float(), grid.float(), align_corners=False)
        return rearrange(seen, "(b h) d n p -> b h d n p", h=self.heads).to(tokens.dtype)


def _shares(offsets: Float[Tensor, "*place 2"], size: tuple[int, int]) -> Float[Tensor, "*place 2"]:
    """Offsets in pixels of a level as shares of its width (x) and height (y)."""
    return torch.stack([offsets[..., 0] / size[1], offsets[..., 1] / size[0]], dim=-1)


def centres(grid: tuple[int, int]) -> Float[Tensor, "patch 2"]:
    """Centres of a grid's cells as (x, y) in 0..1, row by row."""
    down = (torch.arange(grid[0]) + 0.5) / grid[0]
    right = (torch.arange(grid[1]) + 0.5) / grid[1]
    return torch.stack(torch.meshgrid(right, down, indexing="xy"), dim=-1).reshape(-1, 2)


@method(
    "mmfuser",
    version=1,
    idea="deformable attention to four layers",
    variants={"": {"layers": "3,8,13,18"}},
    control="wide_projector",
    paper="arXiv:2410.11829",
    year=2024,
    parity="exact",
    parameters="4*D*D + 12*D + 3*heads*points*(D + 1)*(4 + 1)",
    identity=True,
    switches={"layers": ("23", "3,18", "1..12", "13..24"), "points": (1, 2, 8)},
)
@method(
    "lsf_external_modular",
    version=1,
    idea="MMFuser's block with other layers",
    in_all=("3_18_23",),
    variants={
        "18": {"layers": "18"},
        "3_18_23": {"layers": "3,18"},
        "former": {"layers": "1,2,3,4,5,6,7,8,9,10,11,12"},
        "latter": {"layers": "13,14,15,16,17,18,19,20,21,22,23,24"},
        "all": {"layers": "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24"},
    },
    control="wide_projector-lsf_external_modular",
    paper="arXiv:2503.06063",
    year=2025,
    parity="exact",
    parameters="4*D*D + 12*D + 3*heads*points*(D + 1)*(12 + 1)",
    identity=True,
    details={
        "18": {
            "parameters": "4*D*D + 12*D + 3*heads*points*(D + 1)*(1 + 1)",
            "control": "wide_projector-lsf_external_modular-18",
        },
        "3_18_23": {"parameters": "4*D*D + 12*D + 3*heads*points*(D + 1)*(2 + 1)"},
        "former": {"control": "wide_projector-lsf_external_modular-former"},
        "latter": {"control": "wide_projector-lsf_external_modular-latter"},
        "all": {
            "parameters": "4*D*D + 12*D + 3*heads*points*(D + 1)*(24 + 1)",
            "control": "wide_projector-lsf_external_modular-all",
        },
    },
    switches={"points": (1, 2, 8)},
)
class MMFuser(Fusion):
    """`layers`: keys and values, each a level, of an encoder with `blocks` blocks.

    `asking`: the hidden state that looks at them.

    The official 16 heads are reduced to the largest number that divides both 16 and the width.
    """

    needs_grid = True
    live_after_steps = 3

    def __init__(  # noqa: PLR0913
        self,
        shape: StackShape,
        *,
        layers: str = "3,8,13,18",
        blocks: int = 24,
        asking: int = -2,
        heads: int = 16,
        points: int = 4,
    ) -> None:
        super().__init__(shape)
        at_least(1, heads=heads, points=points)
        keys = self.paper_taps(layers, blocks=blocks)
        self.levels = len(keys)
        # The query may be one of the keys as well.
        self.taps, self.asking = anchored(keys, (shape.layer(asking),))
        self.identity_at_init = shape.layer(asking) == shape.layer(-2)
        split = {"heads": math.gcd(heads, shape.dim), "points": points}
        self.cross_attn = MSDeformAttn(shape.dim, levels=self.levels, **split)
        self.self_attn = MSDeformAttn(shape.dim, levels=1, **split)
        self.query_norm, self.feat_norm, self.norm1 = (
            nn.LayerNorm(shape.dim, eps=1e-6) for _ in range(3)
        )
        self.gamma1 = nn.Parameter(torch.zeros(shape.dim))
        self.gamma2 = nn.Parameter(torch.zeros(shape.dim))
        self.register_buffer("reference", centres(shape.grid), persistent=False)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The asking layer, plus what it found."""
        patches = hidden[:, :, self.shape.prefix :]
        asking = patches[self.asking]
        keys = rearrange(patches[: self.levels], "l b n d -> b (l n) d")
        one = (self.shape.grid,)
        found = self.cross_attn(
            self.query_norm(asking), self.reference, self.feat_norm(keys), one * self.levels
        )
        normed = self.norm1(found)
        again = self.self_attn(normed, self.reference, normed, one)
        return Fused(tokens=asking + self.gamma1 * (found + self.gamma2 * again))
