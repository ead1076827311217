"""Controls: the budget of a fusion without its information.

    repeat          one layer several times: width and projector of a concatenation
    uniform_mean    the plain mean of all blocks: a mix without weights
    random_layers   a concatenation of layers drawn by lot, the same for all seeds of a cell
    wide_projector  a residual MLP on one layer: the parameters of a fusion with modules
The layer is the penultimate one, the base of the methods that they control.
"""

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, method, stream, trained_parameters


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
    """x + MLP(LN(x)) on `hs[index]`, with as many parameters as the method `like`, on any encoder.

    To half a hidden unit, which is 2 D + 1 parameters. What `like` widens in the common projector
    is not counted. The MLP's last Linear starts at zero: training starts from the layer itself.
    """

    live_after_steps = 2

    def __init__(self, shape: StackShape, *, index: int = -2, like: str = "mmfuser") -> None:
        super().__init__(shape)
        self.taps = ((shape.layer(index),),)
        self.identity_at_init = self.taps == ((shape.layer(-2),),)
        beside = trained_parameters(like, shape) - 3 * shape.dim
        width = max(round(beside / (2 * shape.dim + 1)), 1)
        self.norm = nn.LayerNorm(shape.dim)
        self.inner, self.outer = nn.Linear(shape.dim, width), nn.Linear(width, shape.dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The layer and what the MLP makes of it."""
        patches = self.patches(hidden[0])
        widened = nn.functional.gelu(self.inner(self.norm(patches)))
        return Fused(tokens=patches + self.outer(widened))
