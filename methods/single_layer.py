"""One hidden state and nothing else: the baselines, and every layer on its own.

`best_single` tries every layer and takes the best one on val, task by task, as the learning rate is
chosen; a fusion that does not beat it has found no more than a layer.

LLaVA-1.5 (Liu et al., CVPR 2024) reads the penultimate layer, `hs[L-1]`, without CLS and without
any norm.
"""

from jaxtyping import Float
from torch import Tensor

from fusionbench.api import Fused, Fusion, StackShape, method


@method(
    "last",
    version=1,
    idea="the last layer alone",
    variants={"": {"index": -1}},
    control="none: it is a baseline itself",
    parameters="0",
)
@method(
    "penultimate",
    version=1,
    idea="the penultimate layer alone: the baseline",
    variants={"": {"index": -2}},
    control="none: it is a baseline itself",
    paper="LLaVA-1.5, arXiv:2310.03744",
    year=2023,
    parity="exact",
    parameters="0",
    identity=True,
)
@method(
    "penultimate-decoder",
    version=1,
    idea="the same baseline, read by a decoder",
    variants={"": {"index": -2}},
    control="none: it is a baseline itself, of methods that run with the decoder",
    reader="decoder",
    parameters="0",
    identity=True,
)
@method(
    "best_single",
    version=1,
    idea="the best layer on val, task by task",
    control="none: it is a baseline itself",
    tries="index",
    parameters="0",
    identity=True,
)
@method(
    "layer",
    version=1,
    idea="one layer alone, as in layer[index=3]",
    control="none: it is a baseline itself",
    in_all=False,
    parameters="0",
    identity=True,
)
class SingleLayer(Fusion):
    """The patches of `hs[index]`; a negative index counts from the end, -1 is `hs[L]`."""

    def __init__(self, shape: StackShape, *, index: int = -2) -> None:
        super().__init__(shape)
        self.taps = ((shape.layer(index),),)
        self.identity_at_init = self.taps == ((shape.layer(-2),),)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Drop the prefix of the one tap."""
        return Fused(tokens=self.patches(hidden[0]))


@method(
    "last_norm",
    version=1,
    idea="the last layer after the final norm",
    control="none: it is a baseline itself",
    parameters="0",
)
class NormedLast(Fusion):
    """The patches of `hs[L]` behind the encoder's final norm, as its own head would see them."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = ((shape.normed,),)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Drop the prefix of the one tap."""
        return Fused(tokens=self.patches(hidden[0]))
