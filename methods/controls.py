"""Controls: the budget of a fusion without its information.

    repeat          one layer several times: width and projector of a concatenation
    uniform_mean    the plain mean of all blocks: a mix without weights
    random_layers   a concatenation of layers drawn by lot, the same for all seeds of a cell
    wide_projector  a residual MLP on one layer: the parameters of a fusion with modules
The layer is the penultimate one, the base of the methods that they control.
"""

import math

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import (
    Fused,
    Fusion,
    StackShape,
    Unsupported,
    method,
    one_of,
    paper_taps,
    stream,
)


@method("repeat", version=1, control="none: it is a control itself", parameters="(times - 1)*D*H")
class Repeat(Fusion):
    """`hs[index]`, `times` times side by side."""

    def __init__(self, shape: StackShape, *, index: int = -2, times: int = 3) -> None:
        super().__init__(shape)
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}")
        self.taps = ((shape.layer(index),),)
        self.times = times
        self.out_dim = times * shape.dim

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Repeat the patches along the channels."""
        return Fused(tokens=repeat(self.patches(hidden[0]), "b n d -> b n (k d)", k=self.times))


@method("uniform_mean", version=1, control="none: it is a control itself", parameters="0")
class UniformMean(Fusion):
    """The mean of `hs[1..L]`."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = (tuple(range(1, shape.layers + 1)),)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The engine has averaged already."""
        return Fused(tokens=self.patches(hidden[0]))


@method("random_layers", version=1, control="repeat", parameters="(count - 1)*D*H")
class RandomLayers(Fusion):
    """`count` different layers of `hs[1..L]` by lot number `draw`, side by side."""

    def __init__(self, shape: StackShape, *, count: int = 3, draw: int = 0) -> None:
        super().__init__(shape)
        lot = stream("random_layers", shape.layers, draw)
        chosen = lot.permutation(shape.layers)[:count] + 1
        self.taps = tuple((int(index),) for index in sorted(chosen))
        self.out_dim = len(self.taps) * shape.dim

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Concatenate the patches."""
        patches = hidden[:, :, self.shape.prefix :]
        return Fused(tokens=rearrange(patches, "tap b n d -> b n (tap d)"))


@method(
    "wide_projector",
    version=2,
    variants={
        "": {"like": "mmfuser"},
        "alf": {"like": "alf"},
        "llava_stf": {"like": "llava_stf"},
        "lln_layerscale": {"like": "lln_layerscale-shared"},
        "lsf_external_modular": {"like": "lsf_external_modular-3_18_23"},
        "token_packer": {"like": "token_packer"},
    },
    control="none: it is a control itself",
    parameters="(4*D*D + 10*D + 960*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D",
    identity=True,
    details={
        "alf": {"parameters": "(8*D*D + 6*D)//(2*D + 1)*(2*D + 1) + 3*D"},
        "llava_stf": {"parameters": "(36*D*D + 3*D)//(2*D + 1)*(2*D + 1) + 3*D"},
        "lln_layerscale": {"parameters": "(D*D + D + L)//(2*D + 1)*(2*D + 1) + 3*D"},
        "lsf_external_modular": {
            "parameters": "(4*D*D + 10*D + 576*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D"
        },
        "token_packer": {"parameters": "(15*D*D + 12*D)//(2*D + 1)*(2*D + 1) + 3*D"},
    },
)
class WideProjector(Fusion):
    """x + MLP(LN(x)) on `hs[index]`, with the parameters of the method `like` on the same encoder.

    Equal to within half a hidden unit (2 D + 1 parameters). Extra input columns of the projector
    are not counted. The last Linear starts at zero, so training starts from the layer itself.
    """

    live_after_steps = 2

    def __init__(self, shape: StackShape, *, index: int = -2, like: str = "mmfuser") -> None:
        super().__init__(shape)
        self.taps = ((shape.layer(index),),)
        self.identity_at_init = self.taps == ((shape.layer(-2),),)
        budget = parameters_of(like, shape) - 3 * shape.dim
        width = max(round(budget / (2 * shape.dim + 1)), 1)
        self.norm = nn.LayerNorm(shape.dim)
        self.inner, self.outer = nn.Linear(shape.dim, width), nn.Linear(width, shape.dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The patches plus the output of the MLP."""
        patches = self.patches(hidden[0])
        widened = nn.functional.gelu(self.inner(self.norm(patches)))
        return Fused(tokens=patches + self.outer(widened))


_MATCHED = (
    "mmfuser",
    "alf",
    "llava_stf",
    "lln_layerscale-shared",
    "lsf_external_modular-3_18_23",
    "token_packer",
)


def parameters_of(like: str, shape: StackShape) -> int:
    """Trained parameters of a method of `_MATCHED`, from its equations; ValueError for another.

    Raises Unsupported for a grid that the method cannot tile, where there is nothing to control.

    The layers that a paper names may coincide on a shallow encoder, and heads must divide the
    width, so the counts depend on the shape in the same way as in the methods.
    """
    one_of("like", like, _MATCHED)
    if like in ("llava_stf", "token_packer") and (shape.grid[0] % 2 or shape.grid[1] % 2):
        raise Unsupported(f"regions of 2 x 2 do not tile a grid of {shape.grid}")
    dim, layers = shape.dim, shape.layers
    if like == "alf":
        return 8 * dim**2 + 8 * dim
    if like == "lln_layerscale-shared":
        return dim**2 + 3 * dim + layers
    if like == "llava_stf":
        wide = len(paper_taps(shape, "23,21,18,15,12,9,6,3")) * dim
        return wide * (wide // 2) + wide // 2 + wide // 2 * dim + dim
    if like == "token_packer":
        seen = len(paper_taps(shape, "12,16,22,23"))
        return (7 + 2 * seen) * dim**2 + 14 * dim
    levels = len(paper_taps(shape, "3,8,13,18" if like == "mmfuser" else "3,18"))
    points = 4 * math.gcd(16, dim)
    return 4 * dim**2 + 12 * dim + 3 * points * (dim + 1) * (levels + 1)
