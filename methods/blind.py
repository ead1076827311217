"""The control without an image: every token is zero.

A model that is trained with it answers from the question and from what is frequent. A task on
which no method is above it says nothing about vision.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api import Fused, Fusion, StackShape, method


@method(
    "blind",
    version=1,
    idea="no image: all tokens are zero",
    control="none: it is a baseline itself",
    in_all=False,
    parameters="0",
)
class Blind(Fusion):
    """As many tokens as the penultimate layer has patches, all zero."""

    expected_failures = {"taps": "reads no image by design"}

    def __init__(self, shape: StackShape) -> None:
        super().__init__(shape)
        self.taps = ((shape.layer(-2),),)

    def forward(
        self,
        hidden: Float[Tensor, "tap batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> Fused:
        """Zeros."""
        return Fused(tokens=torch.zeros_like(self.patches(hidden[0])))
