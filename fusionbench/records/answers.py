"""The texts that a model answered, one line of JSON for each item, compressed.

The same answers give the same bytes, whenever and wherever they are written.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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


def unpack(content: bytes) -> list[Said]:
    """The answers of a file. Raises ValueError with the line that is none."""
    try:
        lines = gzip.decompress(content).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"not a file of answers: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Said(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} is no answer: {error}") from error
    return found


def _plain(one: Said) -> Mapping[str, Any]:
    ranked = {} if one.ranked is None else {"ranked": one.ranked}
    return {"item": one.item, "text": one.text, **ranked}
