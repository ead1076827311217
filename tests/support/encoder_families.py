"""Tiny random checkpoints of every encoder family, with the peculiarities of the real ones.

Each maker saves one in the library's own format and returns the library's own forward pass.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LAYERS, DIM, PATCH, SIZE = 3, 32, 8, 32


@dataclass(frozen=True)
class Family:
    """A checkpoint on disk and what its library computes."""

    name: str
    prefix: int
    native: Callable[[Tensor], tuple[list[Tensor], Tensor]]
    """Pixel values of any size -> all hidden states before the final norm, the library's output."""
    normed_count: int | None = None
    """How many leading tokens the library norms at the end; None: all of them."""
    norms: bool = True
    """False: the library's output is the last block's."""


def small() -> dict[str, Any]:
    return {
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": SIZE,
        "patch_size": PATCH,
    }


def randomised(model: nn.Module) -> nn.Module:
    """Fresh weights are too tame: zero CLS tokens and positions would hide mistakes."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1) * 0.5)
    return model.eval()


def normalisation(folder: Path, mean: float, std: float) -> None:
    values = {"image_mean": [mean] * 3, "image_std": [std] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def transformers_family(
    folder: Path, family: str, *, model: str = "Model", prefix: int, norms: bool = True, **config
) -> Family:
    import transformers

    made = getattr(transformers, f"{family}Config")(**{**small(), **config})
    tower = randomised(getattr(transformers, f"{family}{model}")(made))
    tower.save_pretrained(folder)

    # Some families resample their positions only where asked.
    takes = inspect.signature(tower.forward).parameters
    asked = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def native(pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        more = asked if pixels.shape[-1] != SIZE else {}
        out = tower(pixels, output_hidden_states=True, **more)
        return list(out.hidden_states), out.last_hidden_state

    return Family(f"hf:{folder}", prefix, native, norms=norms)


def clip(folder: Path) -> Family:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = randomised(CLIPVisionModel(CLIPVisionConfig(**small(), hidden_act="quick_gelu")))
    model.save_pretrained(folder)

    def native(pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        more = {"interpolate_pos_encoding": True} if pixels.shape[-1] != SIZE else {}
        out = model(pixels, output_hidden_states=True, **more)
        return list(out.hidden_states), out.pooler_output[:, None]

    return Family(f"hf:{folder}", 1, native, 1)


def of_transformers(family: str, **given: Any) -> Callable[[Path], Family]:
    return partial(transformers_family, family=family, **given)


def timm_family(
    folder: Path, architecture: str, *, norms: bool = True, pixels: int = SIZE, **arguments: Any
) -> Family:
    import timm
    from timm.models import save_for_hf

    arguments = {
        "embed_dim": DIM, "depth": LAYERS, "num_heads": 4, "img_size": pixels, "patch_size": PATCH,
        "num_classes": 0, **arguments,
    }  # fmt: skip
    model = randomised(timm.create_model(architecture, **arguments))
    model.pretrained_cfg["input_size"] = (3, pixels, pixels)
    model.pretrained_cfg["num_classes"] = 0
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)

    def native(images: Tensor) -> tuple[list[Tensor], Tensor]:
        size = images.shape[-1]
        fresh = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
        return timm_states(model if size == pixels else fresh, images)

    return Family(f"timm:{folder}", model.num_prefix_tokens, native, norms=norms)


def timm_states(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The input of block 1 by a hook, the others as timm gives them, and the normed output."""
    first: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, given: first.append(given[0]))
    normed, between = model.forward_intermediates(
        images, return_prefix_tokens=True, output_fmt="NLC", indices=LAYERS
    )
    hook.remove()
    joined = [torch.cat([one[1], one[0]], dim=1) if isinstance(one, tuple) else one
              for one in between]  # fmt: skip
    return [first[0], *joined], normed


def of_timm(architecture: str, **given: Any) -> Callable[[Path], Family]:
    return partial(timm_family, architecture=architecture, **given)


GRID = (SIZE // PATCH, SIZE // PATCH)
MAKERS: dict[str, Callable[[Path], Family]] = {
    "clip": clip,
    "siglip": of_transformers("SiglipVision", prefix=0),
    "dinov2": of_transformers("Dinov2", prefix=1, mlp_ratio=2),
    "dinov2-giant": of_transformers("Dinov2", prefix=1, mlp_ratio=2, use_swiglu_ffn=True),
    "dinov2-registers": of_transformers("Dinov2WithRegisters", prefix=4, num_register_tokens=3),
    "vit": of_transformers("ViT", prefix=1),
    "dinov3": of_transformers("DINOv3ViT", prefix=5, num_register_tokens=4),
    "dinov3-plus": of_transformers(
        "DINOv3ViT", prefix=5, num_register_tokens=4, use_gated_mlp=True, hidden_act="silu",
        pos_embed_rescale=2.0,
    ),
    "dinov3-7b": of_transformers(
        "DINOv3ViT", prefix=5, num_register_tokens=4, use_gated_mlp=True, query_bias=False,
        value_bias=False, mlp_bias=False,
    ),
    "radio": of_transformers(
        "Radio", prefix=10, norms=False, num_cls_tokens=3, num_registers=7, max_img_size=96,
        mlp_ratio=2.0,
    ),
    "timm": of_timm("vit_tiny_patch16_224", reg_tokens=2, init_values=0.1),
    "timm-siglip2": of_timm("vit_base_patch16_siglip_224"),
    "timm-distilled": of_timm("deit_tiny_distilled_patch16_224"),
    "timm-parallel": of_timm("vit_small_patch16_18x2_224", init_values=0.1),
    "timm-dinov2-giant": of_timm("vit_giant_patch14_reg4_dinov2"),
    "timm-dinov3": of_timm("vit_small_patch16_dinov3"),
    "timm-dinov3-plus": of_timm("vit_small_plus_patch16_dinov3_qkvb"),
    "timm-eva": of_timm("eva_giant_patch14_224", norms=False),
    "timm-eva02": of_timm("eva02_tiny_patch14_224", norms=False, ref_feat_shape=GRID),
    "timm-eva02-clip": of_timm("eva02_base_patch16_clip_224", ref_feat_shape=(2, 2)),
    "timm-eva02-post-norm": of_timm("eva02_enormous_patch14_clip_224", mlp_ratio=2.0),
    "timm-pe-core": of_timm("vit_pe_core_base_patch16_224", ref_feat_shape=GRID),
    "timm-pe-lang": of_timm("vit_pe_lang_large_patch14_448", norms=False, ref_feat_shape=GRID),
    "timm-pe-spatial": of_timm("vit_pe_spatial_base_patch16_512", norms=False, ref_feat_shape=GRID),
    "timm-rope-mixed": of_timm("vit_small_patch16_rope_mixed_ape_224"),
}  # fmt: skip
