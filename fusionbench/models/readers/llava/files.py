"""The files of a LLaVA checkpoint: where they are, whether they are whole.

Standard library only.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError, did_you_mean
from fusionbench.models.encoders import snapshots
from fusionbench.models.encoders.card import header, read_json, tensor_shapes
from fusionbench.models.encoders.snapshots import FAMILIES
from fusionbench.records.files import file_hash

PREFIX = "llava:"
INDEX = "model.safetensors.index.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CONVERTED = "use a checkpoint in the format of transformers, such as llava-hf/llava-1.5-7b-hf"


def located(name: str) -> Path | None:
    """Folder of `llava:<id or folder>`; None if the id is not complete in the Hugging Face cache.

    Raises UserError for a name without the prefix or a folder that does not exist.
    """
    if not name.startswith(PREFIX):
        raise UserError(f"{name!r} names no checkpoint", f"write {PREFIX}<id or folder>")
    try:
        found = snapshots.locate(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    return None if found is not None and snapshots.lacking(found) else found


def configuration(folder: Path, classes: Mapping[str, str]) -> dict[str, Any]:
    """`config.json` of a supported class; `classes` holds the names of classes by model_type.

    Raises UserError for a file that is missing or no JSON, and for another class of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json", CONVERTED)
    try:
        config = read_json(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    kind = str(config.get("model_type"))
    if "mm_vision_tower" in config:
        raise UserError(f"{folder} is in the format of the LLaVA repository", CONVERTED)
    named = [str(one) for one in config.get("architectures") or [classes.get(kind)]]
    if kind not in classes or classes[kind] not in named:
        near = did_you_mean(kind, classes)
        raise UserError(
            f"{folder} is no LLaVA checkpoint: model_type {kind!r}, class {', '.join(named)}{near}",
            _instead(folder, kind, named) or f"supported: {', '.join(classes.values())}",
        )
    return config


def _instead(folder: Path, kind: str, named: Sequence[str]) -> str:
    """How a checkpoint of another kind is used; empty for one that is not supported at all."""
    if kind in FAMILIES:
        return f"a vision encoder is used with --encoder hf:{folder}"
    if any(one.endswith("ForCausalLM") for one in named):
        return f"a language model is used with --language hf:{folder}"
    return ""


def weight_files(folder: Path) -> list[Path]:
    """All safetensors files; UserError for a missing, truncated or foreign one."""
    try:
        files = snapshots.weight_files(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    index = folder / INDEX
    if index.is_file() and files[0].name != "model.safetensors":
        named = set(_read(index).get("weight_map", {}).values())
        absent = sorted(named - {path.name for path in files})
        if absent:
            raise UserError(f"{folder} lacks {', '.join(absent)}, which {INDEX} names")
    for path in files:
        _refuse_truncated(path)
    return files


def shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors."""
    return {name: shape for path in files for name, shape in tensor_shapes(path).items()}


def require(names: Iterable[str], parts: Mapping[str, str], folder: Path) -> None:
    """UserError for a part of the model without any weight; `parts`: text in a name -> words."""
    known = list(names)
    for part, words in parts.items():
        if not any(part in name for name in known):
            raise UserError(f"{folder} has no weights of its {words}: no name holds {part!r}")


def blocks(names: Iterable[str]) -> int:
    """Layers of the language model by its weights' names; 0 if they are named in another way."""
    found = [re.search(r"language_model\..*?(?:layers|h)\.(\d+)\.", name) for name in names]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def table(tensors: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """(vocabulary, width) of the language model's token table; zeros if it has another name."""
    for name, shape in tensors.items():
        if "language_model" in name and name.endswith(("embed_tokens.weight", "wte.weight")):
            return int(shape[0]), int(shape[1])
    return 0, 0


def processor_values(folder: Path) -> dict[str, Any]:
    """Values of `processor_config.json`; empty without one."""
    path = folder / "processor_config.json"
    return _read(path) if path.is_file() else {}


def require_image_processor(folder: Path) -> None:
    """UserError if no file of the folder has the settings of an image processor."""
    nested = processor_values(folder).get("image_processor")
    if not (isinstance(nested, dict) or (folder / "preprocessor_config.json").is_file()):
        raise UserError(
            f"{folder} has no image processor: neither preprocessor_config.json nor "
            "image_processor in processor_config.json"
        )


def tokenizer_hash(folder: Path) -> str:
    """32 hexadecimal digits over names and contents of the tokenizer's files.

    Raises UserError if there are none.
    """
    found = [folder / name for name in TOKENIZER if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} has no tokenizer: none of {', '.join(TOKENIZER[:3])}")
    text = "\n".join(f"{path.name} {file_hash(path)}" for path in found)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _refuse_truncated(path: Path) -> None:
    try:
        entries = header(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    # 8 bytes of length, the header, the data.
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    ends = [entry["data_offsets"][1] for entry in entries.values() if "data_offsets" in entry]
    promised, held = start + max(ends, default=0), path.stat().st_size
    if held < promised:
        raise UserError(f"{path} is truncated: it has {held:,} of {promised:,} bytes")


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(str(error)) from error
