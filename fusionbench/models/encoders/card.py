"""Description of an encoder and the fingerprint of its weights. Standard library only.

The fingerprint is the SHA-256 of the weight files' bytes and of the architecture.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionbench.records.cell import canonical
from fusionbench.records.files import file_hash

# A larger header means that the file is not safetensors.
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, kw_only=True)
class EncoderCard:
    """One encoder at one input size.

    Without weights on disk the fingerprint is empty, and the shape too, unless it is known.
    """

    name: str
    source: str
    """Where the weights come from, in words."""
    available: bool
    get: str = ""
    """How to fetch it; empty if it is available."""
    path: str = ""
    """Folder or file of the weights."""
    weights: str = ""
    """Fingerprint of weights and architecture."""
    layers: int = 0
    dim: int = 0
    grid: tuple[int, int] = (0, 0)
    """Patches, height x width."""
    prefix: int = 0
    size: int = 0
    """Side of the input in pixels."""
    origin: str = "built-in"
    """Where it is declared: `built-in`, a distribution with its version, or a path."""
    module: str = ""
    """Module of a plug-in's class."""
    cls: str = ""
    label: str = ""
    """Name in records of a checkpoint in a folder: the same in every folder; empty for others."""

    @property
    def recorded(self) -> str:
        """The name that enters records and ids: no folder of this machine."""
        return self.label or self.name

    @property
    def tokens(self) -> int:
        """Tokens of one hidden state, prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]


def fingerprint(files: Sequence[Path], *, architecture: Mapping[str, Any]) -> str:
    """32 hexadecimal digits over the files' contents, in order, and the architecture."""
    content = {"files": [file_hash(path) for path in files], "architecture": architecture}
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:32]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError that names the file if it is anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not contain a JSON object")
    return values


def header(path: Path) -> dict[str, Any]:
    """Header of a safetensors file by tensor: 8 bytes of length, then JSON.

    Raises ValueError for a file that is not safetensors.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 2 <= length <= _LARGEST_HEADER else b""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file, or it is truncated") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a safetensors file: its header is no JSON object")
    return values


def require_whole(path: Path) -> None:
    """Raise ValueError for a safetensors file that is shorter or longer than its header says."""
    tensors = [entry for name, entry in header(path).items() if name != "__metadata__"]
    ends = [int(entry["data_offsets"][1]) for entry in tensors]
    with path.open("rb") as file:
        wanted = 8 + int.from_bytes(file.read(8), "little") + max(ends, default=0)
    if path.stat().st_size != wanted:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, its header says {wanted}")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file; ValueError for another file."""
    return {name: tuple(entry["shape"]) for name, entry in header(path).items() if "shape" in entry}


def patches(size: int, *, patch: int, name: str, native: int = 0) -> tuple[int, int]:
    """The grid of a square input; ValueError if the patches do not fill it.

    At the checkpoint's own size (`native`) the pixels behind the last whole patch are not read:
    SigLIP so400m/14 has 27 x 27 patches at 384.
    """
    if size != native and (size <= 0 or size % patch):
        nearest = max(1, round(size / patch)) * patch
        own = f", or {native}, the checkpoint's own" if native % patch else ""
        raise ValueError(
            f"image_size {size} does not fit {name}: it must be a multiple of {patch} "
            f"(the nearest is {nearest}){own}"
        )
    return size // patch, size // patch
