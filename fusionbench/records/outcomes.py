"""Outcomes of single examples, and the names of these examples, as bytes.

A file of outcomes is a header of 16 bytes (magic, version, kind, count) and the values: one bit
each where all are 0 or 1, else little-endian float32.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import canonical

_MAGIC = b"FBOC"
_HEADER = struct.Struct("<4sHHQ")
_VERSION = 1
_BITS, _FLOATS = 0, 1


@dataclass(frozen=True, kw_only=True)
class Items:
    """Names and image groups of the examples behind a row of outcomes, in order."""

    names: tuple[str, ...]
    groups: tuple[str, ...]
    gold: tuple[Mapping[str, Any], ...] = ()
    """Of a benchmark: `options` of each question, and `gold`, which its answers are scored by."""

    @property
    def hash(self) -> str:
        """20 hexadecimal digits; the name of the file that holds the items."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:20]

    def to_json(self) -> str:
        """Canonical JSON: equal items, equal text."""
        values = {"names": self.names, "groups": self.groups}
        return canonical(values | ({"gold": self.gold} if self.gold else {}))

    @staticmethod
    def from_json(text: str) -> "Items":
        """Read items back; ValueError if the text holds none."""
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) - {"gold"} != {"names", "groups"}:
            raise ValueError("not a list of items")
        return Items(**{name: tuple(value) for name, value in values.items()})


def encode(outcomes: Float[np.ndarray, " example"]) -> bytes:
    """Scores as bytes, packed to bits where nothing is lost. ValueError for a NaN."""
    values = np.asarray(outcomes)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"one finite score per example expected, got shape {values.shape}")
    if ((values == 0) | (values == 1)).all():
        packed = np.packbits(values.astype(np.bool_)).tobytes()
        return _HEADER.pack(_MAGIC, _VERSION, _BITS, len(values)) + packed
    return _HEADER.pack(_MAGIC, _VERSION, _FLOATS, len(values)) + values.astype("<f4").tobytes()


def decode(content: bytes) -> Float[np.ndarray, " example"]:
    """Scores from bytes; ValueError for anything that `encode` did not write."""
    if len(content) < _HEADER.size:
        raise ValueError("truncated outcomes")
    magic, version, kind, count = _HEADER.unpack_from(content)
    if magic != _MAGIC or version != _VERSION or kind not in (_BITS, _FLOATS):
        raise ValueError("not a file of outcomes that this version reads")
    body = content[_HEADER.size :]
    if len(body) != (-(-count // 8) if kind == _BITS else 4 * count):
        raise ValueError("truncated outcomes")
    if kind == _BITS:
        bits = np.unpackbits(np.frombuffer(body, dtype=np.uint8), count=count)
        return bits.astype(np.float32)
    return np.frombuffer(body, dtype="<f4").astype(np.float32)
