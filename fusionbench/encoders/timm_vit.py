"""timm's VisionTransformer and Eva from a folder in timm's local-dir layout.

Eva is the class of DINOv3, EVA-02, the Perception Encoder and ViTs with rotary positions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.errors import UserError
from fusionbench.api.types import StackShape
from fusionbench.encoders.preprocessing import FITS, Preprocessing
from fusionbench.encoders.snapshots import timm_images
from fusionbench.encoders.stepped import Passage, Stepped, blank

if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    Model = VisionTransformer | Eva


class TimmEncoder(Stepped):
    """A VisionTransformer or Eva at one input size.

    The model is taken apart: its blocks and its norm are ours, and what is left of it, with
    passages in place of blocks, maps pixels to `hs[0]`.
    """

    def __init__(self, model: "Model", images: Preprocessing) -> None:
        blocks, norm, size = list(model.blocks), model.norm, int(model.patch_embed.img_size[0])
        passages = [Passage() for _ in blocks]
        chained = isinstance(model.blocks, nn.Sequential)
        model.blocks = nn.Sequential(*passages) if chained else nn.ModuleList(passages)
        model.norm = nn.Identity()
        model.eval()
        with torch.no_grad():
            model.forward_features(blank(size, model))
        super().__init__(
            blocks,
            norm,
            [passage.given for passage in passages],
            shape=StackShape(
                layers=len(blocks),
                dim=model.embed_dim,
                grid=tuple(model.patch_embed.grid_size),
                prefix=model.num_prefix_tokens,
            ),
            size=size,
            images=images,
        )
        self.model = model

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Patches with positions and prefix, after the norm in front of block 1 if there is one."""
        return self.model.forward_features(self.pixels(images))


def load_timm(folder: Path, *, image_size: int = 0, fit: str = FITS[0]) -> TimmEncoder:
    """The model of a folder with config.json and model.safetensors; nothing is downloaded.

    Raises UserError for an architecture that is neither VisionTransformer nor Eva.
    """
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    images, native = timm_images(folder, fit=fit)
    # Without the size in the arguments timm builds the architecture's own, not the checkpoint's.
    size = image_size or native
    asked: dict[str, Any] = {"img_size": size} if size else {}
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **asked)
    if not isinstance(model, VisionTransformer | Eva):
        raise UserError(
            f"{folder} holds a {type(model).__name__}, not a timm VisionTransformer or Eva"
        )
    return TimmEncoder(model, images)
