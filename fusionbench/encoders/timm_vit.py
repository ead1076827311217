"""timm's VisionTransformer from a folder in timm's local-dir layout."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, UInt8
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.api.types import StackShape
from fusionbench.encoders.card import read_json
from fusionbench.encoders.vit import prepare

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class TimmEncoder(Encoder):
    """A VisionTransformer at one input size."""

    def __init__(self, model: "VisionTransformer") -> None:
        super().__init__()
        self.model = model
        images: Any = model.pretrained_cfg
        self.mean, self.std = tuple(images["mean"]), tuple(images["std"])
        self.size = model.patch_embed.img_size[0]
        self.shape = StackShape(
            layers=len(model.blocks),
            dim=model.embed_dim,
            grid=tuple(model.patch_embed.grid_size),
            prefix=model.num_prefix_tokens,
        )

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Patches with positions and prefix, after the pre-norm of CLIP-like models."""
        dtype = next(self.model.parameters()).dtype
        pixels = prepare(images, size=self.size, mean=self.mean, std=self.std, dtype=dtype)
        return self.model.norm_pre(self.model._pos_embed(self.model.patch_embed(pixels)))

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, counted from 1."""
        return self.model.blocks[index - 1](tokens)

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The final norm of `forward_features`; identity in models that norm after pooling."""
        return self.model.norm(tokens)


def load_timm(folder: Path, *, image_size: int = 0) -> TimmEncoder:
    """The model of a folder with config.json and model.safetensors; nothing is downloaded.

    Raises ValueError for an architecture that is no VisionTransformer.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    # Without the size in the arguments timm builds the architecture's own, not the checkpoint's.
    native = read_json(folder / "config.json").get("pretrained_cfg", {}).get("input_size")
    size = image_size or (native[-1] if native else 0)
    asked: dict[str, Any] = {"img_size": size} if size else {}
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **asked)
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{folder} holds a {type(model).__name__}, not a timm VisionTransformer")
    return TimmEncoder(model)
