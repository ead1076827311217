"""Vision towers of transformers: CLIP, SigLIP, DINOv2 (with and without registers), plain ViT.

The tower is stepped block by block through its own modules. Its `output_hidden_states` is never
used: transformers 5 may leave entries out or put the normed output in the last place.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusionbench.api.encoders import Encoder
from fusionbench.api.types import StackShape
from fusionbench.encoders import snapshots
from fusionbench.encoders.card import patches
from fusionbench.encoders.vit import Triple, prepare

_CLASSES = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
}
_HALF: Triple = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# What each family's own image processor does where a folder brings none.
_NORMALISATION = {"clip": _OPENAI, "siglip": (_HALF, _HALF), "vit": (_HALF, _HALF)}
# Parts of a checkpoint's class that no hidden state depends on.
_UNUSED = ("pooler.", "head.", "mask_token")


class HfEncoder(Encoder):
    """One of the supported towers at one input size."""

    def __init__(self, tower: nn.Module, *, family: str, size: int, mean: Triple, std: Triple):
        super().__init__()
        config: Any = tower.config
        self.family = family
        self.tower = tower
        self.size, self.mean, self.std = size, mean, std
        # The others resample their positions unasked.
        asks = family in ("clip", "siglip", "vit") and size != config.image_size
        self.resample = {"interpolate_pos_encoding": True} if asks else {}
        registers = getattr(config, "num_register_tokens", 0)
        self.shape = StackShape(
            layers=config.num_hidden_layers,
            dim=config.hidden_size,
            grid=patches(size, patch=config.patch_size, name=family),
            prefix=snapshots.FAMILIES[family] + registers,
        )
        self.blocks = _blocks(tower)
        # Older releases give some families' blocks no mask; those of others demand one.
        takes = inspect.signature(self.blocks[0].forward).parameters
        self.unmasked = {"attention_mask": None} if "attention_mask" in takes else {}
        self.final = _first(tower, "post_layernorm", "layernorm")

    def embed(
        self, images: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch token dim"]:
        """Embeddings with positions; for CLIP after its norm in front of block 1."""
        dtype = next(self.tower.parameters()).dtype
        pixels = prepare(images, size=self.size, mean=self.mean, std=self.std, dtype=dtype)
        tokens = self.tower.get_submodule("embeddings")(pixels, **self.resample)
        if self.family == "clip":
            # The misspelling is CLIP's.
            tokens = self.tower.get_submodule("pre_layrnorm")(tokens)
        return tokens

    def block(
        self, index: int, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Output of block `index`, counted from 1, without a mask."""
        return self.blocks[index - 1](tokens, **self.unmasked)

    def norm(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """The final norm; CLIP's own forward applies it to the CLS token only."""
        return self.final(tokens)


def load_hf(folder: Path, *, image_size: int = 0) -> HfEncoder:
    """The vision tower of a folder written by `save_pretrained`; nothing is downloaded.

    Raises ValueError for an unsupported family, an impossible size, or weights that are missing.
    """
    family = snapshots.vision_config(folder)["model_type"]
    tower = _tower(folder, family)
    images = snapshots.preprocessing(folder)
    short = family.removesuffix("_vision_model")
    mean, std = _NORMALISATION.get(short, _IMAGENET)
    config: Any = tower.config
    return HfEncoder(
        tower,
        family=short,
        size=image_size or images.get("size") or config.image_size,
        mean=tuple(images.get("mean", mean)),
        std=tuple(images.get("std", std)),
    )


def _tower(folder: Path, family: str) -> nn.Module:
    import transformers

    cls = getattr(transformers, _CLASSES[family])
    model, report = cls.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    missing = [name for name in report["missing_keys"] if not name.startswith(_UNUSED)]
    if missing:
        raise ValueError(f"{folder} lacks weights of {_CLASSES[family]}: {', '.join(missing[:3])}")
    # Older releases keep the tower of CLIP and SigLIP one level down.
    return getattr(model, "vision_model", model)


def _blocks(tower: nn.Module) -> nn.ModuleList:
    blocks = _first(tower, "encoder.layers", "encoder.layer", "layers")
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{type(tower).__name__} keeps its blocks in no ModuleList")
    return blocks


def _first(tower: nn.Module, *names: str) -> nn.Module:
    modules = dict(tower.named_modules())
    for name in names:
        if name in modules:
            return modules[name]
    raise ValueError(
        f"{type(tower).__name__} has none of {', '.join(names)}: this release of transformers "
        "builds it in a way that is not known here"
    )
