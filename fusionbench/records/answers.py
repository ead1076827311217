"""The texts that a model answered, one line of JSON for each item, compressed.

The same answers give the same bytes, whenever and wherever they are written.
"""

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Shaped

from fusionbench.api.benchmarks import Answer, Asked
from fusionbench.records.cell import json_object
from fusionbench.records.outcomes import Items
from fusionbench.records.schema import check_types


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
