"""Checkpoints of transformers and timm: supported families, places on disk, cards. No torch.

`hf:` takes a folder written by `save_pretrained` or a hub id, `timm:` a folder in timm's local-dir
layout or a model name; ids and names are looked up in the Hugging Face cache only. `[fit=crop]`
behind either names how images become square.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem, UserError
from fusionbench.models.encoders.card import (
    EncoderCard,
    fingerprint,
    patches,
    read_json,
    require_whole,
    tensor_shapes,
)
from fusionbench.models.encoders.preprocessing import (
    HALF,
    IMAGENET,
    NONE,
    OPENAI,
    Preprocessing,
    Triple,
    of_processor,
    of_timm,
    side,
    split_fit,
)
from fusionbench.records.files import cache_dir, expanded, write_atomic


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


def locate(name: str) -> Path | None:
    """Folder of the checkpoint, or None if it is not on this machine."""
    library, _, checkpoint = split_fit(name)[0].partition(":")
    if not checkpoint:
        raise ValueError(f"{name!r} has no checkpoint: write {name}<id or folder>")
    folder = expanded(checkpoint)
    if folder.is_dir():
        return folder
    if "@" in checkpoint:
        return _noted(checkpoint, name)
    if checkpoint.startswith((".", "/", "~")):
        raise ValueError(f"{name}: there is no folder {checkpoint}")
    repo = checkpoint if library == "hf" or "/" in checkpoint else f"timm/{checkpoint}"
    place = _hub_cache() / f"models--{repo.replace('/', '--')}"
    if library == "timm" and not place.is_dir():
        place = _tagged(place, name)
    return _snapshot(place)


# A checkpoint in a folder is recorded under its kind and its fingerprint, `hf:vit@0123456789ab`,
# and a note in the cache says where this machine has it.

_SHOWN_DIGITS = 12


def labelled(name: str, kind: str, weights: str, folder: Path) -> str:
    """The name in records of a checkpoint in a folder; empty for one of the hub.

    Notes the folder, so that the name finds it again. Raises UserError for such a name of other
    weights.
    """
    if label := _label(name, kind, weights):
        _remember(label, folder)
    elif "@" in name and not split_fit(name)[0].endswith(f"@{weights[:_SHOWN_DIGITS]}"):
        raise UserError(
            f"{folder} holds other weights than those of {name}",
            "restore the files that the study ran with",
        )
    return label


def _label(name: str, kind: str, weights: str) -> str:
    bare, _ = split_fit(name)
    library, _, checkpoint = bare.partition(":")
    if not expanded(checkpoint).is_dir():
        return ""
    fit = name.removeprefix(bare)
    return f"{library}:{re.sub(r'[^A-Za-z0-9_.-]', '-', kind)}@{weights[:_SHOWN_DIGITS]}{fit}"


def _note(label: str) -> Path:
    return cache_dir("checkpoints", f"{split_fit(label)[0].partition(':')[2]}.txt")


def _remember(label: str, folder: Path) -> None:
    """Note where a checkpoint lies. Without a writable cache its folder must be named again."""
    text = f"{folder.resolve()}\n".encode()
    with suppress(OSError):
        if not _note(label).is_file() or _note(label).read_bytes() != text:
            write_atomic(_note(label), text)


def _noted(checkpoint: str, name: str) -> Path:
    if re.fullmatch(r"[A-Za-z0-9_.-]+@[0-9a-f]+", checkpoint):
        with suppress(OSError, ValueError):
            folder = Path(_note(name).read_text(encoding="utf-8").strip())
            if folder.is_dir():
                return folder
    library = name.partition(":")[0]
    raise UserError(
        f"{name} was recorded from a folder that is not known on this machine",
        f"name the folder: {library}:FOLDER",
    )


def snapshots() -> Iterator[tuple[str, Path]]:
    """(owner/name, folder) of every repository in the Hugging Face cache."""
    for repo in sorted(_hub_cache().glob("models--*")):
        if folder := _snapshot(repo):
            yield repo.name.removeprefix("models--").replace("--", "/", 1), folder


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return expanded(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")


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
    folder = repo / "snapshots" / main.read_text(encoding="utf-8").strip()
    return folder if folder.is_dir() else None


_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def lacking(folder: Path, *, processor: bool = False) -> str:
    """What a folder of the Hugging Face cache still lacks; empty for a complete or another folder.

    Other programs leave snapshots of the files that they read. Without the `processor` file images
    would be normalised otherwise; that a repository has none is noted beside its snapshots, as the
    hub's client does.
    """
    if folder.parent.name != "snapshots":
        return ""
    try:
        weight_files(folder)
    except ValueError:
        return "complete weights"
    none = folder.parent.parent / ".no_exist" / folder.name / _PROCESSORS[0]
    known = none.exists() or any((folder / name).is_file() for name in _PROCESSORS)
    return _PROCESSORS[0] if processor and not known else ""


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
    lacks = lacking(folder, processor=name.startswith("hf:")) if folder is not None else ""
    if folder is None or lacks:
        get = how_to_get(name) + (f"; {folder} lacks {lacks}" if lacks else "")
        return EncoderCard(name=name, source="Hugging Face hub", available=False, get=get)
    files = weight_files(folder)
    facts = _facts(name, folder, files)
    size = image_size or facts["size"]
    weights = fingerprint(files, architecture=facts["architecture"])
    label = labelled(name, facts["kind"], weights, folder)
    return EncoderCard(
        name=name,
        source=str(folder),
        available=True,
        path=str(folder),
        weights=weights,
        layers=facts["layers"],
        dim=facts["dim"],
        grid=patches(size, patch=facts["patch"], name=name, native=facts["size"]),
        prefix=facts["prefix"],
        size=size,
        label=label,
    )


def _facts(name: str, folder: Path, files: list[Path]) -> dict[str, Any]:
    read = _hf_facts if name.startswith("hf:") else _timm_facts
    try:
        for file in files:
            require_whole(file)
        facts = read(folder, files, split_fit(name)[1])
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        # Somebody's files of another kind: any field may be missing or of another type.
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise UserError(f"{folder} does not describe an encoder: {kind}{error}") from error
    if min(facts[field] for field in ("layers", "dim", "patch", "size")) < 1:
        shown = ", ".join(f"{field} {facts[field]}" for field in ("layers", "dim", "patch", "size"))
        raise UserError(f"{folder} does not describe an encoder: {shown}")
    return facts


def how_to_get(name: str) -> str:
    """How to download a checkpoint."""
    return (
        f"fetched by the first run that uses it, or now: fusionbench fetch "
        f"'{split_fit(name)[0]}' (needs the Hugging Face hub)"
    )


def cached_names() -> tuple[list[str], list[Problem]]:
    """Names of the supported checkpoints in the Hugging Face cache, and unreadable repositories."""
    names, problems = list[str](), list[Problem]()
    for repo, folder in snapshots():
        config = folder / "config.json"
        if not os.path.lexists(config):
            # Data sets, tokenizers and adapters have none.
            continue
        try:
            values = read_json(config)
        except (OSError, ValueError) as error:
            problems.append(Problem(source=repo, message=str(error)))
            continue
        if values.get("model_type") in FAMILIES:
            names.append(f"hf:{repo}")
        elif str(values.get("architecture", "")).startswith(_TIMM_NAMES):
            names.append(f"timm:{repo.removeprefix('timm/')}")
    return names, problems


def weight_files(folder: Path) -> list[Path]:
    """Safetensors files of a checkpoint, sharded or not; ValueError if one of them is missing."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no model.safetensors; other formats are not supported")
    index = folder / "model.safetensors.index.json"
    if files != [whole] and index.is_file():
        named = read_json(index).get("weight_map")
        shards = {str(one) for one in named.values()} if isinstance(named, dict) else set()
        if missing := sorted(shards - {file.name for file in files}):
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which {index.name} names")
    return files


def vision_config(folder: Path) -> dict[str, Any]:
    """Config of the vision tower; UserError for an unsupported model_type."""
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kind = str(values.get("model_type"))
    if kind in REFUSED:
        raise UserError(f"{folder} has model_type {kind!r}: {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise UserError(f"{folder} has model_type {kind!r}; supported: {', '.join(FAMILIES)}")
    values = values.get("vision_config", values)
    return {**FAMILIES[kind].defaults, **values, "model_type": kind}


def hf_images(folder: Path, *, fit: str) -> tuple[Preprocessing, int]:
    """(preprocessing, side of the input) of a folder written by `save_pretrained`."""
    config = vision_config(folder)
    how, size = of_processor(folder, FAMILIES[config["model_type"]].images, fit=fit)
    return how, size or side(config["image_size"], folder)


def timm_images(folder: Path, *, fit: str) -> tuple[Preprocessing, int]:
    """(preprocessing, side of the input) of a folder in timm's layout."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return of_timm(config.get("pretrained_cfg") or {}, folder, fit=fit)


def images(name: str) -> Preprocessing:
    """Preprocessing of `hf:…` or `timm:…`; ValueError for a checkpoint that is not here."""
    folder = locate(name)
    if folder is None:
        raise ValueError(f"{name} is not on this machine: {how_to_get(name)}")
    read = hf_images if name.startswith("hf:") else timm_images
    return read(folder, fit=split_fit(name)[1])[0]


def _hf_facts(folder: Path, files: list[Path], fit: str) -> dict[str, Any]:
    config = vision_config(folder)
    how, size = hf_images(folder, fit=fit)
    _require_rgb(folder, int(config.get("num_channels", 3)))
    architecture = {key: config[key] for key in sorted(config) if key not in _NOT_ARCHITECTURE}
    return {
        "kind": config["model_type"],
        "layers": int(config["num_hidden_layers"]),
        "dim": int(config["hidden_size"]),
        "patch": side(config["patch_size"], folder),
        "prefix": FAMILIES[config["model_type"]].prefix_of(config),
        "size": size,
        "architecture": {"transformers": architecture, "images": {**how.identity(), "size": size}},
    }


# Names of architectures that may be a VisionTransformer or an Eva; the tensors decide.
_TIMM_NAMES = ("vit_", "deit", "eva", "flexivit")
# Parts of tensors' names of timm's other transformers: relative positions, SAM, CaiT, NaFlex.
_FOREIGN = {
    "rel_pos": "relative position biases",
    "relative_position": "relative position biases",
    "neck.": "a neck (SAM)",
    "blocks_token_only.": "class attention (CaiT)",
    "embeds.": "NaFlex patches of any image shape; RADIO is read from transformers' format (hf:)",
}


def _timm_facts(folder: Path, files: list[Path], fit: str) -> dict[str, Any]:
    """From the tensors' shapes: timm's config.json has only the name of the architecture."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    shapes = {name: shape for path in files for name, shape in tensor_shapes(path).items()}
    _refuse_foreign(folder, config, shapes)
    how, size = timm_images(folder, fit=fit)
    if not size:
        raise UserError(f"{folder} reads rectangular images, which are not supported")
    dim, channels, *_, patch = shapes["patch_embed.proj.weight"]
    if any(name.startswith("patch_embed.backbone.") for name in shapes):
        # Behind a convolutional stem one patch is many pixels wide; few tokens are no patches.
        patch = size // isqrt(shapes["pos_embed"][1])
    elif len(shapes["patch_embed.proj.weight"]) == 4:
        _require_rgb(folder, channels)
    tokens = sum(shapes[name][1] for name in ("cls_token", "dist_token", "reg_token")
                 if name in shapes)  # fmt: skip
    return {
        "kind": str(config["architecture"]),
        "layers": 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("blocks.")),
        "dim": dim,
        "patch": patch,
        "prefix": tokens,
        "size": size,
        "architecture": {
            "timm": config["architecture"],
            "arguments": config.get("model_args", {}),
            "images": {**how.identity(), "size": size},
        },
    }


def _require_rgb(folder: Path, channels: int) -> None:
    if channels != 3:
        raise UserError(f"{folder} reads images of {channels} channels, not the three of RGB")


def _refuse_foreign(folder: Path, config: dict[str, Any], shapes: dict[str, Any]) -> None:
    for part, what in _FOREIGN.items():
        if any(part in name for name in shapes):
            raise UserError(f"{folder} is not a timm VisionTransformer or Eva: it has {what}")
    needed = ("patch_embed.proj.weight", "blocks.0.")
    missing = [part for part in needed if not any(name.startswith(part) for name in shapes)]
    missing += [] if "architecture" in config else ["an architecture in config.json"]
    if missing:
        raise UserError(
            f"{folder} is not a timm VisionTransformer or Eva: missing {', '.join(missing)}"
        )
