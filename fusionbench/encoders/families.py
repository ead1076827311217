"""Vision towers of transformers that `hf:` can load, by `model_type`. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusionbench.encoders.preprocessing import HALF, IMAGENET, NONE, OPENAI, Preprocessing, Triple


@dataclass(frozen=True, kw_only=True)
class Family:
    """A class of transformers and what its configuration and its image processor leave out."""

    cls: str
    """Name of the class in transformers."""
    prefix: int
    """Prefix tokens that no field of the configuration counts."""
    counted: tuple[str, ...] = ()
    """Fields of the configuration that count further prefix tokens."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """Values of the configuration class that `config.json` leaves out."""
    images: Preprocessing
    """Defaults of the family's own image processor."""
    entry: tuple[str, ...] = ("embeddings",)
    """Modules between pixel values and block 1, in order."""
    final_norm: bool = True
    """False: the output of the last block is the output of the model."""

    def prefix_of(self, config: Mapping[str, Any]) -> int:
        """Prefix tokens of a checkpoint, registers included."""
        return self.prefix + sum(int(config.get(name) or 0) for name in self.counted)


_SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16}


def _images(normalisation: tuple[Triple, Triple], interpolation: str) -> Preprocessing:
    mean, std = normalisation
    return Preprocessing(mean=mean, std=std, interpolation=interpolation)


_CLIP = Family(
    cls="CLIPVisionModel",
    prefix=1,
    defaults={**_SHAPE, "patch_size": 32},
    images=_images(OPENAI, "bicubic"),
    # The misspelling is CLIP's.
    entry=("embeddings", "pre_layrnorm"),
)
_SIGLIP = Family(
    cls="SiglipVisionModel", prefix=0, defaults=_SHAPE, images=_images(HALF, "bicubic")
)

FAMILIES: Mapping[str, Family] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": Family(
        cls="Dinov2Model",
        prefix=1,
        defaults={**_SHAPE, "patch_size": 14},
        images=_images(IMAGENET, "bicubic"),
    ),
    "dinov2_with_registers": Family(
        cls="Dinov2WithRegistersModel",
        prefix=1,
        counted=("num_register_tokens",),
        defaults={**_SHAPE, "num_register_tokens": 4},
        images=_images(IMAGENET, "bicubic"),
    ),
    "dinov3_vit": Family(
        cls="DINOv3ViTModel",
        prefix=1,
        counted=("num_register_tokens",),
        defaults={**_SHAPE, "hidden_size": 384},
        images=_images(IMAGENET, "bilinear"),
    ),
    "radio": Family(
        cls="RadioModel",
        prefix=0,
        counted=("num_cls_tokens", "num_registers"),
        defaults={
            **_SHAPE,
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_cls_tokens": 3,
            "num_registers": 7,
        },
        # The model normalises pixel values itself.
        images=_images(NONE, "bicubic"),
        entry=("input_conditioner", "embeddings"),
        final_norm=False,
    ),
    "vit": Family(cls="ViTModel", prefix=1, defaults=_SHAPE, images=_images(HALF, "bilinear")),
}
"""`clip` and `siglip` nest the tower in `vision_config`; SigLIP 2 at a fixed size is `siglip`."""

REFUSED: Mapping[str, str] = {
    name: "its NaFlex variant packs images of any shape into one sequence; checkpoints of SigLIP 2 "
    "at a fixed resolution (siglip2-*-patch16-224 and larger) are supported"
    for name in ("siglip2", "siglip2_vision_model")
}
"""Reasons, by `model_type`."""

LOCAL: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How anything of transformers is read from a folder: nothing is downloaded, and no code in it is
run; without the second the library asks on a terminal whether to run it."""
ON_DISK: Mapping[str, Any] = {**LOCAL, "use_safetensors": True}
"""The same for weights: no pickle."""
