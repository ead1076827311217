"""A plain pre-norm vision transformer: `nano` and `dinov2-small`.

Dosovitskiy et al. 2021 (arXiv 2010.11929), with the layer scale of Touvron et al. 2021
(2103.17239) and the registers of Darcet et al. 2024 (2309.16588); as in DINOv2 (2304.07193) the
registers have no position and stand between CLS and the patches. One fused product gives query,
key and value; attention is SDPA; GELU is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.types import StackShape
from fusionbench.models.encoders.preprocessing import Triple


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture and input; the JSON file beside the weights, field by field."""

    layers: int
    dim: int
    heads: int
    patch: int
    """Side of a patch in pixels."""
    grid: int
    """Side of the stored position grid, in patches."""
    size: int
    """Side of the input in pixels where the user asks for none."""
    mlp: int
    """Width of the hidden layer of the MLP."""
    registers: int = 0
    eps: float = 1e-6
    layer_scale: bool = False
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "ViTConfig":
        """From a JSON object; TypeError for a field that does not exist."""
        triples = {name: tuple(values[name]) for name in ("mean", "std") if name in values}
        return ViTConfig(**{**values, **triples})


class ViTBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm, added to the tokens (times a layer scale)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(dim, eps=config.eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=config.eps)
        self.fc1 = nn.Linear(dim, config.mlp)
        self.fc2 = nn.Linear(config.mlp, dim)
        self.scale1 = nn.Parameter(torch.ones(dim)) if config.layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(dim)) if config.layer_scale else None

    def attend(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Multi-head self-attention."""
        q, k, v = rearrange(
            self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.heads
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))

    def forward(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Attention, then MLP."""
        tokens = tokens + scaled(self.attend(self.norm1(tokens)), self.scale1)
        hidden = self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens + scaled(hidden, self.scale2)


class ViT(Encoder):
    """The transformer at one input size.

    Raises ValueError for an `image_size` that is not a multiple of the patch size.
    """

    def __init__(self, config: ViTConfig, *, image_size: int = 0) -> None:
        super().__init__()
        size = image_size or config.size
        if size <= 0 or size % config.patch:
            raise ValueError(
                f"image_size {size} is not a multiple of the patch size {config.patch}; "
                f"the nearest that is: {max(1, round(size / config.patch)) * config.patch}"
            )
        side, dim = size // config.patch, config.dim
        self.config = config
        self.size = size
        self.shape = StackShape(
            layers=config.layers, dim=dim, grid=(side, side), prefix=1 + config.registers
        )
        self.mean, self.std = config.mean, config.std
        self.patch = nn.Conv2d(3, dim, config.patch, stride=config.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.registers = (
            nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        )
        self.position_cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, side * side, dim))
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.layers))
        self.last = nn.LayerNorm(dim, eps=config.eps)

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Patches with positions, behind CLS and registers."""
        pixels = prepare(
            images,
            size=self.size,
            mean=self.mean,
            std=self.std,
            dtype=self.patch.weight.dtype,
        )
        patches = rearrange(self.patch(pixels), "b d h w -> b (h w) d") + self.position
        prefix = self.cls + self.position_cls
        if self.registers is not None:
            prefix = torch.cat([prefix, self.registers], dim=1)
        return torch.cat([prefix.expand(len(images), -1, -1).to(patches.dtype), patches], dim=1)

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, counted from 1."""
        return self.blocks[index - 1](tokens)

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The final LayerNorm."""
        return self.last(tokens)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights of any float type and any position grid; names must fit exactly."""
        state = {name: value.to(torch.float32) for name, value in weights.items()}
        state["position"] = resampled(state["position"], side=self.shape.grid[0])
        self.load_state_dict(state)


def scaled(
    tokens: Float[Tensor, "batch token dim"], scale: Float[Tensor, " dim"] | None
) -> Float[Tensor, "batch token dim"]:
    """Times the layer scale, where there is one."""
    return tokens if scale is None else tokens * scale


def resampled(position: Float[Tensor, "1 from dim"], *, side: int) -> Float[Tensor, "1 to dim"]:
    """Positions on another square grid: bicubic, a = -0.75, half-pixel centres, as in DINOv2."""
    stored = round(position.shape[1] ** 0.5)
    if stored == side:
        return position
    grid = rearrange(position, "one (h w) d -> one d h w", h=stored)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return rearrange(grid, "one d h w -> one (h w) d")


# From images as tasks store them to what an encoder reads.


def prepare(
    images: UInt8[Tensor, "batch height width 3"],
    *,
    size: int,
    mean: Triple,
    std: Triple,
    dtype: torch.dtype,
    divisor: float = 255,
    interpolation: str = "bilinear",
    fit: str = "squash",
    crop: float = 1.0,
    rounds: bool = False,
) -> Float[Tensor, "batch 3 size size"]:
    """Make images square, divide by `divisor`, normalise per channel.

    The keywords are the fields of `preprocessing.Preprocessing`. The arithmetic is float32 whatever
    `dtype` is; the resized image has whole grey levels.
    """
    resized = fitted(images, size=size, interpolation=interpolation, fit=fit, crop=crop)
    squared = _centre(resized, size, rounds=rounds)
    pixels = rearrange(squared, "b h w c -> b c h w").to(torch.float32) / divisor
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=images.device) for values in (mean, std)
    )
    return ((pixels - shift[:, None, None]) / scale[:, None, None]).to(dtype)


def fitted(
    images: UInt8[Tensor, "batch height width 3"],
    *,
    size: int,
    interpolation: str,
    fit: str,
    crop: float,
) -> UInt8[Tensor, "batch tall wide 3"]:
    """Images as an encoder resizes them, in whole grey levels, before the centre is taken.

    `squash`: a square of `size` pixels; `crop`: the short side has `size / crop` pixels. Images of
    that size come back as they are, so that packing may resize them first.
    """
    if fit != "crop":
        return _resized(images, (size, size), interpolation)
    height, width = images.shape[1:3]
    short, least = short_side(size, fit, crop), min(height, width)
    return _resized(images, (short * height // least, short * width // least), interpolation)


def short_side(size: int, fit: str, crop: float) -> int:
    """Pixels of the short side of a resized image."""
    return int(size / crop + 1e-6) if fit == "crop" else size


def _centre(
    images: UInt8[Tensor, "batch height width 3"], size: int, *, rounds: bool
) -> UInt8[Tensor, "batch size size 3"]:
    spare = [side - size for side in images.shape[1:3]]
    top, left = (round(one / 2) if rounds else one // 2 for one in spare)
    return images[:, top : top + size, left : left + size]


def _resized(
    images: UInt8[Tensor, "batch height width 3"], shape: tuple[int, int], interpolation: str
) -> UInt8[Tensor, "batch tall wide 3"]:
    if images.shape[1:3] == shape:
        return images
    pixels = rearrange(images, "b h w c -> b c h w").to(torch.float32)
    if interpolation == "nearest":
        resized = F.interpolate(pixels, size=shape, mode="nearest-exact")
    else:
        resized = F.interpolate(
            pixels, size=shape, mode=interpolation, antialias=True, align_corners=False
        )
    return rearrange(resized.round().clamp(0, 255).to(torch.uint8), "b c h w -> b h w c")
