"""From images as tasks store them to what an encoder reads."""

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

Triple = tuple[float, float, float]


def prepare(
    images: UInt8[Tensor, "batch height width 3"],
    *,
    size: int,
    mean: Triple,
    std: Triple,
    dtype: torch.dtype,
) -> Float[Tensor, "batch 3 size size"]:
    """Resize to a square, scale to 0..1, normalise per channel.

    The arithmetic is float32 whatever `dtype` is.
    """
    pixels = rearrange(resize(images, size), "b h w c -> b c h w").to(torch.float32) / 255
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=images.device) for values in (mean, std)
    )
    return ((pixels - shift[:, None, None]) / scale[:, None, None]).to(dtype)


def resize(
    images: UInt8[Tensor, "batch height width 3"], size: int
) -> UInt8[Tensor, "batch size size 3"]:
    """Bilinear with antialiasing, back to whole levels; images of that size come back as they are.

    Whole levels, so that images packed after resizing are the same as images resized here.
    """
    if images.shape[1:3] == (size, size):
        return images
    pixels = rearrange(images, "b h w c -> b c h w").to(torch.float32)
    resized = F.interpolate(
        pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return rearrange(resized.round().clamp(0, 255).to(torch.uint8), "b c h w -> b h w c")
