"""Encoders at real scale without their weights: shapes with random values, or none at all.

Time and operations depend on shapes alone. The blocks are those of `encoders/vit.py` (one product
for query, key and value; fused attention), the way any encoder is run fast.
"""

from collections.abc import Mapping

import torch

from fusionbench.api.encoder import Encoder
from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.encoders.build import build
from fusionbench.encoders.catalog import describe
from fusionbench.encoders.vit import ViT, ViTConfig

PREFIX = "shape:"
SHAPES: Mapping[str, ViTConfig] = {
    "shape:clip-vit-l-14-336": ViTConfig(
        layers=24, dim=1024, heads=16, patch=14, grid=24, size=336, mlp=4096
    ),
    "shape:vit-b-16-224": ViTConfig(
        layers=12, dim=768, heads=12, patch=16, grid=14, size=224, mlp=3072
    ),
    "shape:dinov2-s-14": ViTConfig(
        layers=12, dim=384, heads=6, patch=14, grid=16, size=224, mlp=1536, layer_scale=True
    ),
}
RANDOM = "random"
"""The fingerprint of weights that do not matter."""


def subject(
    name: str, *, image_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Encoder, str]:
    """A frozen encoder and the fingerprint of its weights. UserError for an unknown name."""
    if name.startswith(PREFIX):
        if name not in SHAPES:
            known = ", ".join(SHAPES)
            raise UserError(f"no shape {name!r}{did_you_mean(name, SHAPES)}", f"known: {known}")
        with device:
            encoder: Encoder = ViT(SHAPES[name], image_size=image_size)
        _draw(encoder)
        encoder.freeze()
        return encoder.to(dtype=dtype), RANDOM
    try:
        weights = describe(name, image_size=image_size).weights
        on = torch.device("cpu") if device.type == "meta" else device
        return build(name, image_size=image_size, device=on, dtype=dtype).to(device), weights
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), f"or a shape: {', '.join(SHAPES)}") from error


def _draw(encoder: Encoder) -> None:
    """Values that neither vanish nor explode: a time may depend on denormal numbers."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1 and parameter.device.type != "meta":
                parameter.normal_(std=0.02)
