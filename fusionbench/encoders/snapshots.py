"""Checkpoints of transformers and timm on this disk: found and described without either.

Standard library only. `hf:` takes a folder written by `save_pretrained` or an id on the Hugging
Face hub, `timm:` a folder in timm's local-dir layout or a model name; ids and names are looked up
in the Hugging Face cache and nowhere else.
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

# Checkpoints by name: a folder, or what the Hugging Face cache holds. Standard library only.


def locate(name: str) -> Path | None:
    """The checkpoint's folder, or None if it is not on this machine."""
    library, _, checkpoint = name.partition(":")
    if not checkpoint:
        raise ValueError(f"{name!r} names no checkpoint: write {name}<id or folder>")
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
    """Every repository in the Hugging Face cache, as owner/name, and the folder of its files."""
    for repo in sorted(_hub_cache().glob("models--*")):
        if folder := _snapshot(repo):
            yield repo.name.removeprefix("models--").replace("--", "/", 1), folder


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _tagged(place: Path, name: str) -> Path:
    """A timm name without its tag means the one checkpoint here that has any."""
    found = sorted(place.parent.glob(f"{place.name}.*"))
    if len(found) > 1:
        names = ", ".join(f"timm:{path.name.removeprefix('models--timm--')}" for path in found)
        raise ValueError(f"{name} could be any of {names}: give the tag as well")
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
# What a vision_config leaves out is what its class has as default: the base model's values.
_DEFAULTS: Mapping[str, int] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 16,
}
_OWN_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "clip": {"patch_size": 32},
    "dinov2": {"patch_size": 14},
    "dinov2_with_registers": {"patch_size": 16, "num_register_tokens": 4},
}
_NO_ARCHITECTURE = {
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
    """What brings a checkpoint here."""
    return (
        f"fetched by the first run that uses it, or now: python -m fusionbench.encoders.fetch "
        f"'{name}' (needs the Hugging Face hub)"
    )


def cached_names() -> list[str]:
    """Names of the checkpoints in the Hugging Face cache that look like encoders of ours."""
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
    """The safetensors files of a checkpoint, sharded or not; ValueError if there are none."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no model.safetensors; other formats are not read")
    return files


def vision_config(folder: Path) -> dict[str, Any]:
    """The vision tower's config; ValueError for a family that is not supported."""
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{folder} holds model_type {family!r}; supported are {', '.join(FAMILIES)}"
        )
    values = values.get("vision_config", values)
    base = str(family).removesuffix("_vision_model")
    return {**_DEFAULTS, **_OWN_DEFAULTS.get(base, {}), **values, "model_type": family}


def preprocessing(folder: Path) -> dict[str, Any]:
    """Mean, std and input side from preprocessor_config.json, as far as it gives them."""
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
    architecture = {key: config[key] for key in sorted(config) if key not in _NO_ARCHITECTURE}
    return {
        "layers": config["num_hidden_layers"],
        "dim": config["hidden_size"],
        "patch": config["patch_size"],
        "prefix": FAMILIES[config["model_type"]] + config.get("num_register_tokens", 0),
        "size": images.get("size") or config["image_size"],
        "architecture": {"transformers": architecture, "images": images},
    }


def _timm_facts(folder: Path, files: list[Path]) -> dict[str, Any]:
    """From the tensors' shapes: timm's config.json holds a name instead of an architecture."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    shapes = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    needed = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed")
    missing = [name for name in needed if name not in shapes]
    if missing or "architecture" not in config:
        raise ValueError(
            f"{folder} holds no timm VisionTransformer: it lacks "
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
