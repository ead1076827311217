"""A plug-in: the shape of DINOv2 ViT-S/14 with random weights, where nothing can be fetched.

Time depends on the shape alone; scores mean nothing, and no benchmark reports one.
"""

import torch

from fusionbench.api import Encoder, encoder
from fusionbench.harness.pipeline import SHAPES
from fusionbench.models.encoders.vit import ViT


@encoder(
    "random-dinov2-s", version=1, layers=12, dim=384, patch=14, size=112, prefix=1,
    source="random weights in the shape of DINOv2 ViT-S/14",
)  # fmt: skip
class RandomDinoV2S(ViT, Encoder):
    """Drawn once and for all: every process has the same."""

    def __init__(self, *, image_size: int = 0) -> None:
        super().__init__(SHAPES["shape:dinov2-s-14"], image_size=image_size or 112)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.02, generator=rng)
        self.freeze()
