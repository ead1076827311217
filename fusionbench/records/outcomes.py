"""Outcomes, names and generated answers of single examples, as bytes.

A file of outcomes is a header of 16 bytes (magic, version, kind, count) and the values: one bit
each where all are 0 or 1, else little-endian float32.

A file of answers is compressed JSON, one line for each item; the same answers give the same bytes.
"""

import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from fusionbench.api.benchmarks import Answer, Asked
from fusionbench.records.cell import canonical, json_object
from fusionbench.records.schema import check_types

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


@dataclass(frozen=True, kw_only=True)
class Said:
    """The answer to one item, and what its score is computed from besides the text."""

    item: str
    text: str
    ranked: int | None = None
    """Index of the option with the smallest loss, where options were ranked."""


def pack(answers: Sequence[Said]) -> bytes:
    """The file of these answers, in their order."""
    lines = [json.dumps(_plain(one), ensure_ascii=False, sort_keys=True) for one in answers]
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


_LARGEST = 1 << 28
"""Bytes of all answers of a cell: a small file may be packed from any number of them."""


def _unzipped(content: bytes) -> bytes:
    with gzip.GzipFile(fileobj=BytesIO(content)) as file:
        found = file.read(_LARGEST + 1)
    if len(found) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes of answers")
    return found


def unpack(content: bytes) -> list[Said]:
    """The answers of a file. Raises ValueError with the line that is none."""
    try:
        # Not `splitlines`: an answer may hold U+2028, which JSON leaves as it is.
        lines = _unzipped(content).decode().removesuffix("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"not a file of answers: {error}") from error
    found = []
    for number, line in enumerate(filter(None, lines), 1):
        try:
            found.append(_said(json_object(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} is no answer: {error}") from error
    return found


def _said(values: Mapping[str, Any]) -> Said:
    found = Said(**values)
    check_types(found)
    return found


def items_of(asked: Sequence[Asked]) -> Items:
    """The questions of a benchmark as records name them: enough to score stored answers again."""
    return Items(
        names=tuple(one.name for one in asked),
        groups=tuple(one.group for one in asked),
        gold=tuple({"options": list(one.options), "gold": dict(one.gold)} for one in asked),
    )


def answers_of(
    items: Items, said: Sequence[Said], outcomes: Shaped[np.ndarray, " item"]
) -> list[Answer]:
    """The stored answers of a benchmark as its measures take them.

    Raises ValueError if the files of items, answers and outcomes do not fit each other, or if the
    questions were stored without what their answers are scored against.
    """
    if not items.gold:
        raise ValueError("its questions were stored without their true answers")
    if items.names != tuple(one.item for one in said) or len(outcomes) != len(said):
        raise ValueError("its answers are not those to its questions")
    return [
        Answer(
            name=one.item,
            group=group,
            options=tuple(gold["options"]),
            gold=gold["gold"],
            text=one.text,
            ranked=one.ranked,
            outcome=float(outcome),
        )
        for one, group, gold, outcome in zip(said, items.groups, items.gold, outcomes, strict=True)
    ]


def _plain(one: Said) -> Mapping[str, Any]:
    ranked = {} if one.ranked is None else {"ranked": one.ranked}
    return {"item": one.item, "text": one.text, **ranked}
