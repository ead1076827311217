"""Compact form of a folder of results: few files, the same records.

study.json, ablations.json, probes/   as in a live folder
facts.json       each distinct budget, card and provenance, by hash
cells.jsonl      a line per cell or tuning run in normal form, sorted by id
outcomes.npz     outcomes of all cells      items.json       names of their examples, by hash
answers.npz      the files of answers of all cells of the track vlm
profiles.jsonl   a line per profile         failures.jsonl   last failures of cells without a record
pictures.jsonl   a line per task: pictures of its examples
SHA256SUMS       hashes of these files

Earlier versions left the files of answers in answers/, as in a live folder; those are read too.
"""

import hashlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy.lib import format as npy

from fusionbench.api.errors import Problem
from fusionbench.records.cell import CellRecord, canonical, json_object
from fusionbench.records.cost import PROFILES
from fusionbench.records.files import ANY_SIZE, content, regular, sha256_of, why, write_atomic
from fusionbench.records.outcomes import Items, items_hash
from fusionbench.records.pictures import PICTURES
from fusionbench.records.schema import Fact, check
from fusionbench.records.verified import (
    ANSWERS,
    ANSWERS_END,
    FileState,
    Parts,
    VerifiedFiles,
    examine,
    size_of,
    sizes,
    text_hash,
)

CELLS, FACTS, OUTCOMES, ITEMS = "cells.jsonl", "facts.json", "outcomes.npz", "items.json"
PACKED_ANSWERS, FAILURES = "answers.npz", "failures.jsonl"
TUNING = '"stage": "tune"'
"""In the line of a tuning run and in no other: a quote inside a text is escaped."""
SUMS = "SHA256SUMS"
"""Hashes of the files of the compact form, as `sha256sum -c` reads them."""
_PARTS = (CELLS, FACTS, OUTCOMES, PACKED_ANSWERS, ITEMS, PROFILES, FAILURES, PICTURES)
_SUM = re.compile(r"[0-9a-f]{64}")
_UNREADABLE = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, struct.error, MemoryError, OverflowError, SyntaxError, TokenError),
)
"""What reading a damaged archive of arrays raises."""
_ID = re.compile(r'"id": "([0-9a-f]{20})"')
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of the members of an archive of files: equal contents, equal bytes."""


class Archive:
    """Reader of the compact form; empty for a folder without it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / CELLS

    @property
    def state(self) -> FileState:
        """The state of each file, and of all files of answers together."""
        files = [number for name in _PARTS for number in size_of(self.folder / name)]
        answers = sizes(self.folder / ANSWERS, ANSWERS_END).values()
        return (*files, *map(sum, zip(*answers, strict=True)))

    def cells(self) -> bytes:
        """The file of lines; empty if it is missing or cannot be read, which `changed` names."""
        try:
            return content(self.file, ANY_SIZE)
        except (OSError, ValueError):
            return b""

    def sums(self, cells: bytes) -> dict[str, str]:
        """The SHA-256 of each file by name: of `cells` as read, of the others as they are now.

        Empty for a file that cannot be read.
        """
        found = {name: _sum(self.folder / name) for name in _PARTS if name != CELLS}
        answers = sorted((self.folder / ANSWERS).glob(f"*{ANSWERS_END}"))
        found |= {f"{ANSWERS}/{file.name}": _sum(file) for file in answers}
        return {CELLS: hashlib.sha256(cells).hexdigest() if cells else "", **found}

    @property
    def exists(self) -> bool:
        """Whether the folder has any file of the compact form."""
        return any(os.path.lexists(self.folder / name) for name in (*_PARTS, SUMS))

    def examined(
        self, lines: Sequence[str], parts: Parts
    ) -> Iterator[tuple[str, CellRecord | Problem]]:
        """The id of each line (empty: unknown) and its record, or why it cannot be used."""
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            cell = _id(line)
            source = f"{self.file}:{number}"
            if cell in seen:
                yield "", Problem(source=source, message=f"ignored: a second line of cell {cell}")
                continue
            seen |= {cell} if cell else set()
            try:
                record = examine(line, parts, cell)
                if not cell:
                    raise ValueError(f"a line of cell {record.id} that another program has written")
                yield cell, record
            except (OSError, ValueError) as error:
                yield cell, Problem(source=source, message=f"ignored: {why(error)}")
        for what, files in (("outcomes", self._outcomes), ("answers", self._answers)):
            if lost := sorted(files.places.keys() - seen):
                text = f"{len(lost)} cells with {what} have no line in it, the first is {lost[0]}"
                yield "", Problem(source=str(self.file), message=text)

    def changed(self, sums: Mapping[str, str]) -> Iterator[Problem]:
        """A problem for each file whose hash is not the one noted when it was written."""
        for line in _lines(self.folder / SUMS):
            digest, _, name = line.partition("  ")
            if name not in _PARTS or not _SUM.fullmatch(digest):
                said = f"not a line of hashes: {line[:60]!r}"
                yield Problem(source=str(self.folder / SUMS), message=said)
            elif sums[name] != digest:
                said = f"changed since it was written: its hash is not the one in {SUMS}"
                yield Problem(source=str(self.folder / name), message=said)

    def fact(self, name: str) -> Fact:
        """The fact of that hash. Raises KeyError without it, ValueError for a damaged file."""
        fact = self._facts[name]
        if not isinstance(fact, dict):
            raise ValueError(f"its facts were damaged or edited ({FACTS}, {name})")
        return fact

    def outcomes(self, cell: str) -> bytes:
        """The outcomes of a cell, encoded. Raises KeyError without them, ValueError if damaged."""
        return self._outcomes[cell]

    def answers(self, cell: str) -> bytes:
        """The file of a cell's answers. Raises KeyError without one, ValueError if damaged."""
        return self._answers[cell]

    def items(self, name: str) -> Items:
        """The examples of that hash. Raises KeyError without them, ValueError if damaged."""
        found = self._items[name]
        if not isinstance(found, dict) or items_hash(canonical(found).encode()) != name:
            raise ValueError(f"its items were damaged or edited ({ITEMS}, {name})")
        return Items.of(found)

    def failures(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Source and reader of each line of failures."""
        file = self.folder / FAILURES
        for number, line in enumerate(_lines(file), 1):
            yield f"{file}:{number}", partial(str, line)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return _read_object(self.folder / FACTS)

    @cached_property
    def _items(self) -> dict[str, Any]:
        return _read_object(self.folder / ITEMS)

    @cached_property
    def _outcomes(self) -> "_FileOfEachCell":
        return _FileOfEachCell.read(self.folder / OUTCOMES)

    @cached_property
    def _answers(self) -> "_FileOfEachCell":
        return _FileOfEachCell.read(self.folder / PACKED_ANSWERS)


@dataclass(frozen=True)
class _FileOfEachCell:
    """A file of many cells, end to end: three arrays that are not compressed."""

    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of each cell, where its file starts and stops in `data`."""
    data: Shaped[np.ndarray, " byte"] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    damage: str = ""
    """Why no cell's file can be found in it; empty for a sound one."""

    @staticmethod
    def read(file: Path) -> "_FileOfEachCell":
        """Empty without the file.

        `data` is not compared with the archive's checksum: the record of each cell has the hash of
        its part, so that a damaged byte costs one cell.
        """
        if not os.path.lexists(file):
            return _FileOfEachCell()
        try:
            whole = content(file, ANY_SIZE)
            with zipfile.ZipFile(io.BytesIO(whole)) as members:
                found = [members.getinfo(f"{name}.npy") for name in ("cells", "sizes", "data")]
            cells, sizes = (_array(_member(whole, one, checked=True)) for one in found[:2])
            stops = np.cumsum(sizes, dtype=np.int64)
            # The last bytes: the header before them is not checked, so it is not read.
            data = np.frombuffer(_member(whole, found[2], checked=False), dtype=np.uint8)
            data = data[len(data) - int(sizes.sum(dtype=np.int64)) :]
            places = zip((stops - sizes).tolist(), stops.tolist(), strict=True)
            named = dict(zip(map(bytes.decode, cells.tolist()), places, strict=True))
            return _FileOfEachCell(named, data)
        except _UNREADABLE as error:
            return _FileOfEachCell(damage=f"{file.name} is damaged: {error}")

    def __getitem__(self, cell: str) -> bytes:
        """Raises KeyError without the cell, ValueError for a damaged file."""
        if self.damage:
            raise ValueError(self.damage)
        start, stop = self.places[cell]
        return self.data[start:stop].tobytes()


class SoundLines:
    """The lines of the compact form that can be used.

    A line is examined once: not again while the hashes of all files are those of an earlier check.
    `rests_on` names what a check rests on, see `VerifiedFiles.add`.
    """

    def __init__(
        self,
        archive: Archive,
        verified: VerifiedFiles,
        parts: Parts,
        rests_on: Callable[[], Sequence[str]],
    ) -> None:
        self.problems: list[Problem] = []
        """What is wrong with other lines and with files."""
        self._archive, self._verified, self._parts = archive, verified, parts
        self._rests_on = rests_on
        self._found: Mapping[str, str] | None = None
        self._hashed = False
        self._records: dict[str, CellRecord] = {}

    def find(self, *, reread: bool) -> Mapping[str, str]:
        """The lines by id. The files are read once, and once more for the first `reread`.

        `reread` compares hashes, also of files that look as they did at an earlier check. Raises
        OSError for a folder that cannot be listed.
        """
        if self._found is None or (reread and not self._hashed):
            found, problems = self._examine(reread=reread)
            self._found, self.problems, self._hashed = found, problems, reread
        return self._found

    def record(self, cell: str) -> CellRecord:
        """The record of a line. Raises ValueError for one that is missing, damaged or edited."""
        known = self._records.pop(cell, None)
        if known is not None:
            return known
        line = self.find(reread=False).get(cell)
        if line is None:
            raise ValueError("its line is gone or damaged")
        return self._parts.facts.build(check(line, cell, passed=self._hashed))

    def _examine(self, *, reread: bool) -> tuple[Mapping[str, str], list[Problem]]:
        if not self._archive.exists:
            return {}, []
        # Before the files are read: a later change gives another state.
        state, cells = self._archive.state, self._archive.cells()
        whole = cells.removesuffix(b"\n").decode("utf-8", "replace")
        lines = whole.split("\n") if cells else []
        del whole
        # The first line of each id.
        found = {name: line for line in reversed(lines) if (name := _id(line))}
        if not reread and self._verified.knows(CELLS, state):
            return found, []
        sums = self._archive.sums(cells)
        digest = text_hash("".join(sums.values()).encode())
        if self._verified.digests.get(CELLS) == digest:
            return found, []
        problems: list[Problem] = []
        for cell, one in self._archive.examined(lines, self._parts):
            if isinstance(one, Problem):
                problems.append(one)
                found.pop(cell, None)
            elif reread and cell and TUNING not in found[cell]:
                # What shows numbers reads these records next; a plan reads few.
                self._records[cell] = one
        problems += self._archive.changed(sums)
        if found and not problems:
            self._verified.add([(CELLS, digest, state)], self._rests_on())
        return found, problems


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a folder of results holds, by id, hash or name."""

    lines: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    outcomes: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    items: dict[str, Items] = field(default_factory=dict)
    profiles: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Files that both forms share, by their path in the folder."""


def write_archive(folder: Path, contents: Contents) -> None:
    """Write the compact form into a folder: the same bytes for the same contents.

    Raises OSError.
    """
    items = {name: json_object(one.to_json()) for name, one in contents.items.items()}
    lines = _joined(contents.lines)
    parts = {
        FACTS: _object(contents.facts),
        OUTCOMES: _npz(contents.outcomes),
        PACKED_ANSWERS: _npz(contents.answers),
        ITEMS: _object(items),
        PROFILES: _joined(contents.profiles),
        FAILURES: _joined(contents.failures),
        PICTURES: _joined(contents.pictures),
        CELLS: lines,
    }
    sums = {name: hashlib.sha256(one).hexdigest() for name, one in parts.items() if one}
    # The lines last: without them the folder holds no compact form.
    parts = {SUMS: "".join(f"{sums[n]}  {n}\n" for n in sorted(sums)).encode(), **parts}
    for name, written in {**contents.files, **parts}.items():
        if written:
            write_atomic(folder / name, written)


def _id(line: str) -> str:
    """The id of a line; empty if none is recognised."""
    named = _ID.search(line)
    return named[1] if named else ""


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file, none without it; a byte that is no text fails a line's checksum."""
    # What is there and cannot be read gives no line: `_changed` names it.
    with suppress(OSError, ValueError), regular(file) as raw:
        for line in io.TextIOWrapper(io.BufferedReader(raw), "utf-8", "replace", newline="\n"):
            yield line.rstrip("\n")


def _sum(file: Path) -> str:
    """The SHA-256 of a file; empty for one that cannot be read."""
    try:
        return sha256_of(file)
    except (OSError, ValueError):
        return ""


def _array(member: bytes) -> Shaped[np.ndarray, " value"]:
    """The array of a member, of one axis. Raises ValueError for a header of another size."""
    file = io.BytesIO(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = read[npy.read_magic(file)](file)
    if len(shape) != 1 or dtype.hasobject or dtype.kind not in "Sui":
        raise ValueError(f"an array of {dtype} {shape}")
    return np.frombuffer(member, dtype=dtype, count=shape[0], offset=file.tell())


def _joined(lines: Mapping[str, str]) -> bytes:
    return "".join(f"{line}\n" for _, line in sorted(lines.items())).encode()


def _object(values: Mapping[str, Any]) -> bytes:
    """A JSON object with one line for each name; nothing for an empty one."""
    lines = ",\n".join(
        f"{json.dumps(name)}: {canonical(one)}" for name, one in sorted(values.items())
    )
    return f"{{\n{lines}\n}}\n".encode() if lines else b""


def _read_object(file: Path) -> dict[str, Any]:
    if not os.path.lexists(file):
        return {}
    try:
        return json_object(content(file, ANY_SIZE).decode())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} is damaged: {why(error)}") from error


def _member(whole: bytes, about: zipfile.ZipInfo, *, checked: bool) -> bytes:
    """A member of an archive as it is written; `checked`: compared with its checksum.

    Raises ValueError for a compressed member, which may unpack to any size, or a damaged one.
    """
    if about.compress_type != zipfile.ZIP_STORED or about.file_size != about.compress_size:
        raise ValueError(f"its member {about.filename} is compressed, and none is when written")
    # A local header has 30 bytes, then the name and an extra field, whose sizes are its last four.
    header = whole[about.header_offset : about.header_offset + 30]
    before = sum(struct.unpack("<HH", header[26:30]))
    start = about.header_offset + len(header) + before
    member = whole[start : start + about.file_size]
    if checked and zlib.crc32(member) != about.CRC:
        raise ValueError(f"the checksum of its member {about.filename} differs")
    return member


def _npz(files: Mapping[str, bytes]) -> bytes:
    """What `_FileOfEachCell` reads; nothing without files."""
    if not files:
        return b""
    cells = sorted(files)
    arrays = {
        "cells": np.array([cell.encode() for cell in cells]),
        "sizes": np.array([len(files[cell]) for cell in cells], dtype="<i4"),
        "data": np.frombuffer(b"".join(files[cell] for cell in cells), dtype=np.uint8),
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        for name, array in arrays.items():
            member = io.BytesIO()
            npy.write_array(member, array, allow_pickle=False)
            members.writestr(zipfile.ZipInfo(f"{name}.npy", _DATE), member.getvalue())
    return file.getvalue()
