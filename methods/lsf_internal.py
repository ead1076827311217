"""Layer_Select_Fuse inside the language model: each layer's tokens enter another reader layer.

Lin et al., CVPR 2025, arXiv:2503.06063. The reader sees P(hs[23]) as its image tokens; a further
state k has a projector P_k of its own and goes to reader layer m(k):
    direct   h[image] += P_k(hs_k)                       in front of layer m
    modular  layer m becomes, with gates g1 = g2 = 0 at the start,
             x = RMSNorm(h);  x = x + tanh(g1) CA(x, P_k(hs_k));  x = x + tanh(g2) MLP_u(x)
             h = h + SA(x);   h = h + MLP(RMSNorm(h))
As published, `modular` adds the last MLP to the normalised h, so that it is not the layer it
replaces even at g = 0, and lets position t see the image's tokens 0..t only; where two states meet
in one reader layer the second is dropped (here `direct` adds both); no P_k normalises its input.
(Released as it is, neither form runs: `layer_fusing_strategy` is never set, and `modular` tests the
wrong name.)
Projectors that can reach nothing are not built. Parameters bear their official names.
"""

from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api import Fused, Fusion, Injection, ReaderPatch, StackShape, method, one_of
from fusionbench.methods._cross_layer import CrossLayer, replacing
from fusionbench.methods._inside import (
    entering,
    first_of_each_layer,
    layer_projector,
    normed,
    targets,
)


@method(
    "lsf_internal_direct",
    version=1,
    idea="layers are added to layers of the reader",
    variants={
        "": {"form": "direct"},
        "as_published": {"form": "direct", "as_published": True},
        "repeat": {"form": "direct", "repeat": True},
        "repeat_as_published": {"form": "direct", "as_published": True, "repeat": True},
    },
    in_all=("", "repeat"),
    control="lsf_internal_direct-repeat",
    reader="decoder",
    paper="arXiv:2503.06063",
    year=2025,
    parity="deviates: P_k normalises its input, and adds up where the official code drops",
    parameters="3*(D*H + H + H*H + H)",
    details={
        "as_published": {
            "parity": "exact",
            "control": "lsf_internal_direct-repeat_as_published",
        },
        "repeat_as_published": {"control": "lsf_internal_direct-repeat_as_published"},
    },
    switches={"repeat": (True,), "strategy": ("18", "3_18", "former", "latter", "all")},
)
@method(
    "lsf_internal_modular",
    version=1,
    idea="reader layers attend to encoder layers",
    variants={
        "": {"form": "modular"},
        "as_published": {"form": "modular", "as_published": True},
        "repeat": {"form": "modular", "repeat": True},
    },
    in_all=False,
    control="lsf_internal_modular-repeat",
    reader="decoder",
    paper="arXiv:2503.06063",
    year=2025,
    parity="deviates: repaired residual and mask; P_k normalises its input",
    parameters="3*(D*H + H + H*H + H + 4*H*H + 3*H*M + 2)",
    identity=True,
    details={"as_published": {"parity": "exact", "identity": False}},
    switches={"repeat": (True,), "strategy": ("18", "3_18", "former", "latter", "all")},
)
class LSFInternal(Fusion):
    """`form` "direct" or "modular"; `strategy`: 18, 3_18, 3_18_23, former, latter or all.

    `repeat`, its control: hs[23] in place of every other state, all else alike.
    """

    def __init__(
        self,
        shape: StackShape,
        *,
        form: str = "direct",
        strategy: str = "3_18_23",
        repeat: bool = False,
        as_published: bool = False,
    ) -> None:
        super().__init__(shape)
        self.form = one_of("form", form, ("direct", "modular"))
        self.as_published = as_published
        reader = shape.reader_layers()
        found = targets(strategy, reader.layers)
        if as_published or form == "modular":
            found = first_of_each_layer(found)
        self.targets = tuple((str(j), str(m)) for j, _, m in found)
        self.taps, self.rows = entering(shape, found, repeat=repeat)
        self.mm_projectors = nn.ModuleDict(
            {j: layer_projector(shape.dim, reader.width) for j, _ in self.targets}
        )
        self.layers = nn.ModuleDict()
        if form == "modular":
            self.identity_at_init, self.live_after_steps = not as_published, 2
            for _, m in self.targets:
                self.layers[m] = CrossLayer(
                    reader.width, heads=reader.heads, mlp=reader.mlp, as_published=as_published
                )

    def projected(
        self, hidden: Float[Tensor, "tap batch token dim"]
    ) -> list[Float[Tensor, "batch token width"]]:
        """Each further state through its own projector, in the order of the targets."""
        patches = [self.patches(hidden[row]) for row in self.rows]
        if not self.as_published:
            patches = [normed(each) for each in patches]
        named = zip(self.targets, patches, strict=True)
        return [self.mm_projectors[j](each) for (j, _), each in named]

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """The base's tokens; the others on their way into the reader."""
        tokens, values = self.patches(hidden[0]), self.projected(hidden)
        places = [m for _, m in self.targets]
        if self.form == "direct":
            injections = (
                Injection(layer=int(m), when="before", values=each)
                for m, each in zip(places, values, strict=True)
            )
            return Fused(tokens=tokens, injections=tuple(injections))
        patches = (
            ReaderPatch(layer=int(m), wrap=replacing(self.layers[m], each))
            for m, each in zip(places, values, strict=True)
        )
        return Fused(tokens=tokens, patches=tuple(patches))
