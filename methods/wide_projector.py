"""Controls with the parameters of a method: a residual MLP on the penultimate layer.

    tokens = x + W_2 gelu(W_1 LN(x)),    x = hs[L-1]
The width of the MLP follows from the size of the method `like` on the same encoder. Methods that
give fewer or wider tokens have a control that does so too: neighbours of 2 x 2 patches are joined
along the channels for `llava_stf`, averaged for `token_packer`; `alf` gives one token.
"""

from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, StackShape, method, one_of
from fusionbench.methods._sizes import parameters_of

_SIDE = 2


@method(
    "wide_projector",
    version=2,
    idea="control: one layer, as many parameters",
    variants={
        "": {"like": "mmfuser"},
        "lln_layerscale": {"like": "lln_layerscale-shared"},
        "lln_layerscale-per_layer": {"like": "lln_layerscale-per_layer"},
        "lsf_external_modular": {"like": "lsf_external_modular-3_18_23"},
        "lsf_external_modular-18": {"like": "lsf_external_modular-18"},
        "lsf_external_modular-former": {"like": "lsf_external_modular-former"},
        "lsf_external_modular-latter": {"like": "lsf_external_modular-latter"},
        "lsf_external_modular-all": {"like": "lsf_external_modular-all"},
    },
    in_all=("", "lln_layerscale", "lsf_external_modular"),
    control="none: it is a control itself",
    parameters="(4*D*D + 10*D + 960*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D",
    identity=True,
    details={
        "lln_layerscale": {"parameters": "(D*D + D + L)//(2*D + 1)*(2*D + 1) + 3*D"},
        "lln_layerscale-per_layer": {
            "parameters": "(L*(D*D + 3*D + 1) - 2*D)//(2*D + 1)*(2*D + 1) + 3*D"
        },
        "lsf_external_modular": {
            "parameters": "(4*D*D + 10*D + 576*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D"
        },
        "lsf_external_modular-18": {
            "parameters": "(4*D*D + 10*D + 384*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D"
        },
        "lsf_external_modular-former": {
            "parameters": "(4*D*D + 10*D + 2496*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D"
        },
        "lsf_external_modular-latter": {
            "parameters": "(4*D*D + 10*D + 2496*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D"
        },
        "lsf_external_modular-all": {
            "parameters": "(4*D*D + 10*D + 4800*(D + 1))//(2*D + 1)*(2*D + 1) + 3*D"
        },
    },
)
class WideProjector(Fusion):
    """x + MLP(LN(x)) on `hs[index]`, with the parameters of the method `like` on the same encoder.

    Equal to within half a hidden unit (2 D + 1 parameters). The last Linear starts at zero, so
    training starts from the layer itself.
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


@method(
    "wide_projector-alf",
    version=3,
    idea="control: as many parameters, one token",
    variants={"": {"like": "alf"}},
    control="none: it is a control itself",
    parameters="(8*D*D + 6*D)//(2*D + 1)*(2*D + 1) + 3*D",
    needs="",
)
@method(
    "wide_projector-llava_stf",
    version=3,
    idea="control: as many parameters, fewer tokens",
    variants={"": {"like": "llava_stf"}},
    control="none: it is a control itself",
    parameters="(36*D*D + 3*D)//(2*D + 1)*(2*D + 1) + 3*D + 3*D*H",
)
@method(
    "wide_projector-token_packer",
    version=3,
    idea="control: as many parameters, fewer tokens",
    variants={"": {"like": "token_packer"}},
    control="none: it is a control itself",
    parameters="(15*D*D + 12*D)//(2*D + 1)*(2*D + 1) + 3*D",
)
class CoarseWideProjector(WideProjector):
    """A wide projector with fewer tokens, as many as the method `like` has.

    Neighbours of 2 x 2 stand side by side in 4 D channels for "llava_stf", and are averaged for
    "token_packer"; for "alf" the mean of all patches is the only token.
    """

    needs_grid = True

    def __init__(self, shape: StackShape, *, index: int = -2, like: str = "token_packer") -> None:
        super().__init__(shape, index=index, like=like)
        self.like = one_of("like", like, ("alf", "llava_stf", "token_packer"))
        self.identity_at_init = False
        self.needs_grid = like != "alf"
        self.out_dim = shape.dim * (_SIDE**2 if like == "llava_stf" else 1)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The tokens of the wide projector, each neighbourhood as one token."""
        tokens = super().forward(hidden, query).tokens
        if self.like == "alf":
            return Fused(tokens=reduce(tokens, "b n d -> b 1 d", "mean"))
        images = rearrange(
            tokens, "b (y i x j) d -> b y x i j d", i=_SIDE, j=_SIDE, x=self.shape.grid[1] // _SIDE
        )
        if self.like == "llava_stf":
            return Fused(tokens=rearrange(images, "b y x i j d -> b (y x) (i j d)"))
        return Fused(tokens=reduce(images, "b y x i j d -> b (y x) d", "mean"))
