"""Locate and describe checkpoints of transformers and timm on disk. Standard library only.

`hf:` takes a folder written by `save_pretrained` or a hub id, `timm:` a folder in timm's local-dir
layout or a model name; ids and names are looked up in the Hugging Face cache only.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fusionbench.encoders.card import (
    EncoderCard,
    fingerprint,
    patches,
    read_json,
    tensor_shapes,
)


def locate(name: str) -> Path | None:
    """Folder of the checkpoint, or None if it is not on this machine."""
    library, _, checkpoint = name.partition(":")
    if not checkpoint:
        raise ValueError(f"{name!r} has no checkpoint: write {name}<id or folder>")
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if checkpoint.startswith((".", "/", "~")):
        raise ValueError(f"{name}: there is no folder {checkpoint}")
    repo = checkpoint if library == "hf" else f"timm/{checkpoint}"
    place = _hub_cache() / f"models--{repo.replace('/', '--')}"
    if library == "timm" and not place.is_dir():
        place = _tagged(place, name)
    return _snapshot(place)


def snapshots() -> Iterator[tuple[str, Path]]:
    """(owner/name, folder) of every repository in the Hugging Face cache."""
    for repo in sorted(_hub_cache().glob("models--*")):
        if folder := _snapshot(repo):
            yield repo.name.removeprefix("models--").replace("--", "/", 1), folder


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _tagged(place: Path, name: str) -> Path:
    """The cached checkpoint of a timm name without tag; ValueError if there are several."""
    found = sorted(place.parent.glob(f"{place.name}.*"))
    if len(found) > 1:
        names = ", ".join(f"timm:{path.name.removeprefix('models--timm--')}" for path in found)
        raise ValueError(f"{name} is ambiguous ({names}): add the tag")
    return found[0] if found else place


def _snapshot(repo: Path) -> Path | None:
    main = repo / "refs" / "main"
    if not main.is_file():
        return None
    folder = repo / "snapshots" / main.read_text().strip()
    return folder if folder.is_dir() else None


# Prefix tokens by the vision tower's model_type; `clip` and `siglip` nest it in `vision_config`.
FAMILIES: Mapping[str, int] = {
    "clip": 1,
    "clip_vision_model": 1,
    "siglip": 0,
    "siglip_vision_model": 0,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "vit": 1,
}
# Values that a vision_config leaves out: the defaults of its class (the base model).
_DEFAULTS: Mapping[str, int] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 16,
}
_MODEL_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "clip": {"patch_size": 32},
    "dinov2": {"patch_size": 14},
    "dinov2_with_registers": {"patch_size": 16, "num_register_tokens": 4},
}
_NOT_ARCHITECTURE = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "architectures",
}


def card(name: str, *, image_size: int = 0) -> EncoderCard:
    """Card of `hf:…` or `timm:…`; ValueError for a folder without a supported checkpoint."""
    folder = locate(name)
    if folder is None:
        return EncoderCard(
            name=name, source="Hugging Face hub", available=False, get=how_to_get(name)
        )
    files = weight_files(folder)
    describe = _hf_facts if name.startswith("hf:") else _timm_facts
    facts = describe(folder, files)
    size = image_size or facts["size"]
    return EncoderCard(
        name=name,
        source=str(folder),
        available=True,
        path=str(folder),
        weights=fingerprint(files, architecture=facts["architecture"]),
        layers=facts["layers"],
        dim=facts["dim"],
        grid=patches(size, patch=facts["patch"], name=name),
        prefix=facts["prefix"],
        size=size,
    )


def how_to_get(name: str) -> str:
    """How to download a checkpoint."""
    return (
        f"fetched by the first run that uses it, or now: python -m fusionbench.encoders.fetch "
        f"'{name}' (needs the Hugging Face hub)"
    )


def cached_names() -> list[str]:
    """Names of the supported checkpoints in the Hugging Face cache."""
    names = []
    for repo, folder in snapshots():
        if not (folder / "config.json").is_file():
            continue
        values = read_json(folder / "config.json")
        if values.get("model_type") in FAMILIES:
            names.append(f"hf:{repo}")
        elif str(values.get("architecture", "")).startswith("vit_"):
            names.append(f"timm:{repo.removeprefix('timm/')}")
    return names


def weight_files(folder: Path) -> list[Path]:
    """Safetensors files of a checkpoint, sharded or not; ValueError if there are none."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors; other formats are not supported")
    return files


def vision_config(folder: Path) -> dict[str, Any]:
    """Config of the vision tower; ValueError for an unsupported model_type."""
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{folder} has model_type {family!r}; supported: {', '.join(FAMILIES)}")
    values = values.get("vision_config", values)
    base = str(family).removesuffix("_vision_model")
    return {**_DEFAULTS, **_MODEL_DEFAULTS.get(base, {}), **values, "model_type": family}


def preprocessing(folder: Path) -> dict[str, Any]:
    """`mean`, `std` and input `size` from preprocessor_config.json, where given."""
    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    found = {
        name: list(values[f"image_{name}"]) for name in ("mean", "std") if f"image_{name}" in values
    }
    cropped = values.get("do_center_crop") and values.get("crop_size")
    side = _side(cropped or values.get("size"))
    return {**found, "size": side} if side else found


def _side(size: Any) -> int:
    if isinstance(size, int):
        return size
    known = [size[key] for key in ("height", "shortest_edge") if key in size] if size else []
    return int(known[0]) if known else 0


def _hf_facts(folder: Path, files: list[Path]) -> dict[str, Any]:
    config, images = vision_config(folder), preprocessing(folder)
    architecture = {key: config[key] for key in sorted(config) if key not in _NOT_ARCHITECTURE}
    return {
        "layers": config["num_hidden_layers"],
        "dim": config["hidden_size"],
        "patch": config["patch_size"],
        "prefix": FAMILIES[config["model_type"]] + config.get("num_register_tokens", 0),
        "size": images.get("size") or config["image_size"],
        "architecture": {"transformers": architecture, "images": images},
    }


def _timm_facts(folder: Path, files: list[Path]) -> dict[str, Any]:
    """From the tensors' shapes: timm's config.json has only the name of the architecture."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    shapes = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    needed = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed")
    missing = [name for name in needed if name not in shapes]
    if missing or "architecture" not in config:
        raise ValueError(
            f"{folder} is not a timm VisionTransformer: missing "
            f"{', '.join(missing) or 'an architecture in config.json'}"
        )
    registers = shapes.get("reg_token", (1, 0, 0))[1]
    images = config.get("pretrained_cfg", {})
    return {
        "layers": 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("blocks.")),
        "dim": shapes["pos_embed"][-1],
        "patch": shapes["patch_embed.proj.weight"][-1],
        "prefix": registers + ("cls_token" in shapes),
        "size": images.get("input_size", [3, 224, 224])[-1],
        "architecture": {
            "timm": config["architecture"],
            "arguments": config.get("model_args", {}),
            "images": {key: images.get(key) for key in ("mean", "std", "input_size")},
        },
    }
