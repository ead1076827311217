"""DINOv2 ViT-S/14 in our own format: names of transformers in, names of `vit.py` out, fp16.

Oquab et al. 2023, "DINOv2" (arXiv 2304.07193). Half precision keeps the file at 44 MB; the
rounding is 2^-11 of each weight, and the weights are computed with in fp32.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fusionbench.records.files import write_atomic

ARCHITECTURE: Mapping[str, int | float | bool] = {
    "layers": 12,
    "dim": 384,
    "heads": 6,
    "patch": 14,
    "grid": 37,
    "size": 224,
    "mlp": 1536,
    "eps": 1e-6,
    "layer_scale": True,
}

_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attention.output.dense.weight": "out.weight",
    "attention.output.dense.bias": "out.bias",
    "layer_scale1.lambda1": "scale1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "fc1.weight",
    "mlp.fc1.bias": "fc1.bias",
    "mlp.fc2.weight": "fc2.weight",
    "mlp.fc2.bias": "fc2.bias",
    "layer_scale2.lambda1": "scale2",
}


def renamed(theirs: Mapping[str, Tensor], *, layers: int) -> dict[str, Tensor]:
    """A Dinov2Model checkpoint under our names; query, key and value become one matrix.

    Raises ValueError naming the tensor that is missing.
    """
    position = _take(theirs, "embeddings.position_embeddings")
    ours = {
        "cls": _take(theirs, "embeddings.cls_token"),
        "position_cls": position[:, :1],
        "position": position[:, 1:],
        "patch.weight": _take(theirs, "embeddings.patch_embeddings.projection.weight"),
        "patch.bias": _take(theirs, "embeddings.patch_embeddings.projection.bias"),
        "last.weight": _take(theirs, "layernorm.weight"),
        "last.bias": _take(theirs, "layernorm.bias"),
    }
    if "embeddings.register_tokens" in theirs:
        ours["registers"] = theirs["embeddings.register_tokens"]
    for layer in range(layers):
        old, new = f"encoder.layer.{layer}.", f"blocks.{layer}."
        ours |= {new + own: _take(theirs, old + their) for their, own in _BLOCK.items()}
        for kind in ("weight", "bias"):
            ours[f"{new}qkv.{kind}"] = _fused(theirs, old, kind)
    return ours


def save(weights: Mapping[str, Tensor], target: Path, *, source: str) -> None:
    """Write weights (fp16) and architecture; the weights last, since they announce themselves."""
    from safetensors.torch import save as serialised

    half = {name: value.to(torch.float16).contiguous() for name, value in weights.items()}
    config = {"architecture": ARCHITECTURE, "source": source}
    write_atomic(target.with_suffix(".json"), json.dumps(config, indent=2).encode())
    write_atomic(target, serialised(half))


def _fused(theirs: Mapping[str, Tensor], block: str, kind: str) -> Float[Tensor, "..."]:
    parts = [
        _take(theirs, f"{block}attention.attention.{part}.{kind}")
        for part in ("query", "key", "value")
    ]
    return rearrange(parts, "three d ... -> (three d) ...")


def _take(theirs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in theirs:
        raise ValueError(f"no DINOv2 checkpoint: the tensor {name} is missing")
    return theirs[name]
