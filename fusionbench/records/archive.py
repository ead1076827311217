"""Compact form of a folder of results: few files, the same records.

study.json, ablations.json, probes/   as in a live folder
facts.json       each distinct budget, card and provenance, by hash
cells.jsonl      a line per cell or tuning run in normal form, sorted by id
outcomes.npz     outcomes of all cells      items.json       names of their examples, by hash
profiles.jsonl   a line per profile         failures.jsonl   last failures of cells without a record
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from fusionbench.api.errors import Problem
from fusionbench.records.cell import canonical, json_object
from fusionbench.records.cost import PROFILES
from fusionbench.records.facts import Fact, Facts
from fusionbench.records.files import content, write_atomic
from fusionbench.records.outcomes import Items
from fusionbench.records.verified import (
    ANSWERS,
    ANSWERS_END,
    FileState,
    answers_file,
    examine,
    size_of,
    sizes,
)

CELLS, FACTS, OUTCOMES, ITEMS = "cells.jsonl", "facts.json", "outcomes.npz", "items.json"
FAILURES = "failures.jsonl"
TUNING = '"stage": "tune"'
"""In the line of a tuning run and in no other: a quote inside a text is escaped."""
_ID = re.compile(r'"id": "([0-9a-f]{20})"')
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of the members of `outcomes.npz`: equal contents, equal bytes."""


class Archive:
    """Reader of the compact form; empty for a folder without it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / CELLS

    @property
    def state(self) -> FileState:
        """Size and time of change of the lines, of the outcomes and, if any, of all answers."""
        files = (*size_of(self.file), *size_of(self.folder / OUTCOMES))
        answers = sizes(self.folder / ANSWERS, ANSWERS_END).values()
        if not answers:
            return files
        return (*files, sum(size for size, _ in answers), max(time for _, time in answers))

    @cached_property
    def lines(self) -> Mapping[str, str]:
        """The lines of cells and tuning runs by id, unchecked."""
        return {found[1]: line for line in _lines(self.file) if (found := _ID.search(line))}

    def problems(self, facts: Facts) -> Iterator[tuple[str, Problem]]:
        """The id (empty: unknown) and the problem of each line that cannot be used."""
        for number, line in enumerate(_lines(self.file), 1):
            found = _ID.search(line)
            cell = found[1] if found else ""
            try:
                answers = partial(content, answers_file(self.folder, cell))
                examine(line, facts, partial(self.outcomes, cell), answers)
            except (OSError, ValueError) as error:
                source = f"{self.file}:{number}"
                yield cell, Problem(source=source, message=f"ignored: {error}")

    def fact(self, name: str) -> Fact:
        """The fact of that hash. Raises KeyError without it, ValueError for a damaged file."""
        fact: Fact = self._facts[name]
        return fact

    def outcomes(self, cell: str) -> bytes:
        """The outcomes of a cell, encoded. Raises KeyError without them, ValueError if damaged."""
        places, data = self._outcomes
        start, stop = places[cell]
        return data[start:stop].tobytes()

    def items(self, name: str) -> Items:
        """The examples of that hash. Raises KeyError without them, ValueError if damaged."""
        return Items.from_json(canonical(self._items[name]))

    def failures(self) -> Iterator[str]:
        """The lines of failures."""
        return _lines(self.folder / FAILURES)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return _read_object(self.folder / FACTS)

    @cached_property
    def _items(self) -> dict[str, Any]:
        return _read_object(self.folder / ITEMS)

    @cached_property
    def _outcomes(self) -> tuple[dict[str, tuple[int, int]], Shaped[np.ndarray, " byte"]]:
        file = self.folder / OUTCOMES
        if not file.exists():
            return {}, np.zeros(0, dtype=np.uint8)
        try:
            with np.load(file) as arrays:
                cells, sizes, data = (arrays[name] for name in ("cells", "sizes", "data"))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{OUTCOMES} is damaged: {error}") from error
        stops = np.cumsum(sizes, dtype=np.int64)
        places = zip((stops - sizes).tolist(), stops.tolist(), strict=True)
        return dict(zip(map(bytes.decode, cells.tolist()), places, strict=True)), data


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder of results holds, by id, hash or name."""

    lines: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    outcomes: dict[str, bytes] = field(default_factory=dict)
    items: dict[str, Items] = field(default_factory=dict)
    profiles: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Files that both forms share, by their path in the folder."""


def write_archive(folder: Path, contents: Contents) -> None:
    """Write the compact form into a folder: the same bytes for the same contents.

    Raises OSError.
    """
    items = {name: json_object(one.to_json()) for name, one in contents.items.items()}
    parts = {
        FACTS: _object(contents.facts),
        OUTCOMES: _npz(contents.outcomes),
        ITEMS: _object(items),
        PROFILES: _joined(contents.profiles),
        FAILURES: _joined(contents.failures),
        # Last: without it the folder holds no compact form.
        CELLS: _joined(contents.lines),
    }
    for name, written in {**contents.files, **parts}.items():
        if written:
            write_atomic(folder / name, written)


def _lines(file: Path) -> Iterator[str]:
    if file.exists():
        with file.open(encoding="utf-8", newline="\n") as lines:
            yield from (line.rstrip("\n") for line in lines)


def _joined(lines: Mapping[str, str]) -> bytes:
    return "".join(f"{line}\n" for _, line in sorted(lines.items())).encode()


def _object(values: Mapping[str, Any]) -> bytes:
    """A JSON object with one line for each name; nothing for an empty one."""
    lines = ",\n".join(
        f"{json.dumps(name)}: {canonical(one)}" for name, one in sorted(values.items())
    )
    return f"{{\n{lines}\n}}\n".encode() if lines else b""


def _read_object(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return json_object(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error


def _npz(outcomes: Mapping[str, bytes]) -> bytes:
    """All outcomes end to end, with the cell and the size of each; stored, not compressed."""
    if not outcomes:
        return b""
    cells = sorted(outcomes)
    arrays = {
        "cells": np.array([cell.encode() for cell in cells]),
        "sizes": np.array([len(outcomes[cell]) for cell in cells], dtype="<i4"),
        "data": np.frombuffer(b"".join(outcomes[cell] for cell in cells), dtype=np.uint8),
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            members.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), member.getvalue())
    return file.getvalue()
