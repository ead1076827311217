"""Outcomes of single examples, and the names of these examples, as bytes.

A file of outcomes is a header of 16 bytes (magic, version, kind, count) and the values: one bit
each where all are 0 or 1, else little-endian float32.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import canonical, json_object

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
        return items_hash(self.to_json().encode())

    def to_json(self) -> str:
        """Canonical JSON: equal items, equal text."""
        values = {"names": self.names, "groups": self.groups}
        return canonical(values | ({"gold": self.gold} if self.gold else {}))

    @staticmethod
    def from_json(text: str) -> "Items":
        """Read items back; ValueError if the text holds none."""
        return Items.of(json_object(text))

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Items":
        """Items from their JSON values; ValueError if these are none."""
        if set(values) - {"gold"} != {"names", "groups"}:
            raise ValueError("not a list of items")
        lists = list(values.values())
        if not all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
            raise ValueError("not a list of items: their names and groups differ in number")
        if not all(type(one) is str for part in ("names", "groups") for one in values[part]):
            raise ValueError("not a list of items: a name or group is no text")
        for one in values.get("gold", ()):
            if not isinstance(one, dict) or set(one) != {"options", "gold"}:
                raise ValueError("not a list of items: an answer without its options")
        return Items(**{name: tuple(value) for name, value in values.items()})


def items_hash(text: bytes) -> str:
    """The hash of items in their canonical JSON."""
    return hashlib.sha256(text).hexdigest()[:20]


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
