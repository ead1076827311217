"""DeepStack as in Qwen3-VL: three of the encoder's layers enter the first three reader layers.

Qwen3-VL report, arXiv:2511.21631; transformers, models/qwen3_vl. After reader layer j = 0, 1, 2
    h[image] += Linear(GELU(Linear(LN(x_j))))
where x_j are the outputs of the encoder's blocks 8, 16, 24 of 27 (counted from 0), hs[9, 17, 25],
each with a merger of its own. Officially a merger first puts 2 x 2 patches side by side
(`merge` 2), and the reader's image tokens are hs[L]; the port here keeps all patches and hs[L-1],
as all methods do that are compared with it. Parameters bear their official names.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api import Fused, Fusion, Injection, StackShape, Unsupported, at_least, method
from fusionbench.methods._inside import joined

_EPS = 1e-6


class Merger(nn.Module):
    """One layer's way into the reader."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.linear_fc1, self.linear_fc2 = nn.Linear(dim, dim), nn.Linear(dim, width)

    def forward(
        self, merged: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token width"]:
        """Project each (merged) token on its own."""
        return self.linear_fc2(F.gelu(self.linear_fc1(self.norm(merged))))


@method(
    "qwen3vl_deepstack",
    version=1,
    idea="three layers enter the first reader layers",
    variants={
        "": {},
        "as_published": {"base": -1, "merge": 2},
        "repeat": {"repeat": True},
        "repeat_as_published": {"base": -1, "merge": 2, "repeat": True},
    },
    in_all=("",),
    control="qwen3vl_deepstack-repeat",
    reader="decoder",
    paper="arXiv:2511.21631",
    year=2025,
    parity="deviates: keeps all patches, and hs[L-1] at the input",
    parameters="3*(2*D + D*D + D + D*H + H)",
    details={
        "as_published": {
            "parity": "exact",
            "parameters": "3*(8*D + 16*D*D + 4*D + 4*D*H + H) + 3*D*H",
            "needs": "grid",
            "control": "qwen3vl_deepstack-repeat_as_published",
        },
        "repeat_as_published": {
            "parameters": "3*(8*D + 16*D*D + 4*D + 4*D*H + H) + 3*D*H",
            "needs": "grid",
            "control": "qwen3vl_deepstack-repeat_as_published",
        },
    },
    switches={"repeat": (True,), "base": (-1,)},
)
class Qwen3VLDeepStack(Fusion):
    """`layers` of an encoder of `blocks` blocks; `merge`: patches a side that become one token.

    `base`: the hidden state of the image tokens. `repeat`, its control: the base in place of every
    other state, all else alike.
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        layers: tuple[int, ...] = (9, 17, 25),
        blocks: int = 27,
        base: int = -2,
        merge: int = 1,
        repeat: bool = False,
    ) -> None:
        super().__init__(shape)
        at_least(1, blocks=blocks, merge=merge)
        reader = shape.reader_layers()
        if len(layers) > reader.layers:
            raise Unsupported(f"{len(layers)} layers enter a reader that has {reader.layers}")
        if any(side % merge for side in shape.grid):
            raise Unsupported(f"a grid of {shape.grid} cannot be merged {merge} by {merge}")
        self.merge, self.needs_grid = merge, merge > 1
        anchor = (shape.layer(base),)
        states = tuple((shape.paper_layer(k, blocks=blocks),) for k in layers)
        self.taps, self.rows = joined(anchor, (anchor,) * len(states) if repeat else states)
        self.out_dim = shape.dim * merge**2
        self.deepstack_merger_list = nn.ModuleList(
            Merger(self.out_dim, reader.width) for _ in layers
        )

    def merged(
        self, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch merged width"]:
        """Windows of patches side by side, in the order that Qwen's processor gives them."""
        rows = self.shape.grid[0] // self.merge
        return rearrange(
            self.patches(tokens),
            "b (Y y X x) d -> b (Y X) (y x d)",
            Y=rows,
            y=self.merge,
            x=self.merge,
        )

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The base's tokens; the others on their way into the reader."""
        tokens = [self.merged(state) for state in hidden]
        injections = (
            Injection(layer=j, when="after", values=merger(tokens[row]))
            for j, (row, merger) in enumerate(
                zip(self.rows, self.deepstack_merger_list, strict=True)
            )
        )
        return Fused(tokens=tokens[0], injections=tuple(injections))
