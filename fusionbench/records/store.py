"""Records on disk: one immutable JSON file per cell, with the outcomes of its examples beside it.

cells/<id>.json      finished and skipped cells        outcomes/<id>.bin   a score per example
tuning/<id>.json     runs that chose a learning rate   items/<hash>.json   the examples' names
failures/<id>.<n>.json   what went wrong, kept         damaged/            moved here, never deleted
study.json           what was asked for, run by run

A record appears under its name whole or not at all, and after its outcomes. No torch here.
"""

import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import Problem, UserError, disk_error
from fusionbench.records.cell import SCHEMA, CellRecord, canonical, checksum, json_object
from fusionbench.records.files import free_name, sha256_of, write_atomic, write_new
from fusionbench.records.history import History
from fusionbench.records.parallel import in_order
from fusionbench.records.sharing import Shared

# Whether a record on disk is whole: its own bytes, its name, and the outcomes it points to.


_ID = re.compile(r"[0-9a-f]{20}")
_SHARE = 2000
"""Files that a process examines at a time; fewer are not worth another process."""


def content(path: Path) -> bytes:
    """All of a small file: half of the time of `read_bytes`, and there may be 200,000 of them."""
    with path.open("rb", buffering=0) as file:
        return file.read()


def read_record(path: Path) -> CellRecord:
    """A record; ValueError for a truncated, foreign or edited file."""
    return CellRecord.from_json(content(path).decode())


def problems(paths: Sequence[Path]) -> Iterator[Problem]:
    """What is wrong with which of these records of one folder of results, in their order."""
    shares = [paths[start : start + _SHARE] for start in range(0, len(paths), _SHARE)]
    for found in in_order([partial(_problems, share) for share in shares]):
        yield from found


def _problems(paths: Sequence[Path]) -> list[Problem]:
    found: list[Problem] = []
    for path in paths:
        try:
            examine(path, path.parent.parent / "outcomes" / f"{path.stem}.bin")
        except (OSError, ValueError) as error:
            found.append(Problem(source=str(path), message=f"ignored: {error}"))
    return found


def examine(path: Path, outcomes: Path) -> None:
    """Raise ValueError or OSError for a file that is no record or does not fit its outcomes.

    The checksum stands for the contents, so that 100,000 files are examined without building
    100,000 records.
    """
    if path.suffix != ".json" or not _ID.fullmatch(path.stem):
        raise ValueError("not a file of FusionBench")
    values = json_object(content(path).decode())
    claimed = values.pop("checksum", None)
    if "spec" not in values or values.get("schema") != SCHEMA:
        raise ValueError("not a cell record that this version reads")
    if claimed != checksum(values):
        raise ValueError("edited: the checksum does not fit the contents")
    if values["id"] != path.stem:
        raise ValueError(f"holds the record of another cell ({values['id']})")
    if values.get("outcomes"):
        _compare(outcomes, values["outcomes"])


def _compare(outcomes: Path, expected: str) -> None:
    try:
        found = hashlib.sha256(content(outcomes)).hexdigest()
    except FileNotFoundError as error:
        raise ValueError(f"its outcomes are missing ({outcomes.name})") from error
    if found != expected:
        raise ValueError(f"its outcomes were damaged or edited ({outcomes.name})")


# Which cell files were found whole, by size and time of change, so that planning reads few.
#
# The ledger is only a memory of checks: without it every file is read again, and nothing is lost.


State = tuple[int, int, int, int]
"""Size and time (ns) of the record, size and time of its outcomes (0, 0 where it has none)."""
Sizes = dict[str, tuple[int, int]]


class Ledger:
    """An append-only text file, one line for each check that a cell has passed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.states: dict[str, State] = {}
        self._read()

    def _read(self) -> None:
        with suppress(OSError, UnicodeDecodeError):
            for line in self.file.read_text(encoding="utf-8").splitlines():
                # The last line may be torn by a kill; what does not parse is not known.
                with suppress(ValueError):
                    name, *numbers = line.split(" ")
                    first, second, third, fourth = map(int, numbers)
                    self.states[name] = (first, second, third, fourth)

    def knows(self, name: str, state: State) -> bool:
        """Whether this very file has been checked before."""
        return self.states.get(name) == state

    def add(self, checked: Iterable[tuple[str, State]]) -> None:
        """Remember checks; a folder that cannot be written is read again next time."""
        lines = []
        for name, state in checked:
            self.states[name] = state
            lines.append(f"{name} {' '.join(map(str, state))}\n")
        if lines:
            # One write in append mode: lines of several workers do not mix.
            with suppress(OSError), self.file.open("a", encoding="utf-8") as file:
                file.write("".join(lines))


def sizes(folder: Path, suffix: str) -> Sizes:
    """Size and time of change of each file with this ending, by stem."""
    found: Sizes = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                status = entry.stat()
                found[entry.name.removesuffix(suffix)] = (status.st_size, status.st_mtime_ns)
    return found


def size_of(file: Path) -> tuple[int, int]:
    """Size and time of change of one file; (0, 0) if it does not exist."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


# The folder of results itself: made, and cleaned of what a kill left.


PARTS = ("cells", "outcomes", "items", "tuning", "failures")
_STALE_SECONDS = 3600.0
"""Younger temporary files may belong to a worker that is still writing."""


def make(path: Path) -> None:
    """Make a folder of results, or complete it. Raises UserError if that cannot be."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder", "choose a folder with --out")
    try:
        for part in PARTS:
            (path / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


def remove_stale(path: Path) -> None:
    """Delete temporary files that a killed run left half-written."""
    for part in PARTS:
        for file in (path / part).glob(".*"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                    file.unlink()


def move_aside(file: Path) -> Path:
    """Move a damaged record to `damaged/`; where it lies now."""
    folder = file.parent.parent / "damaged"
    folder.mkdir(exist_ok=True)
    return file.rename(free_name(folder, file.stem))


# Failures of cells: each is kept, none counts as a record, so that its cell is tried again.


def write_failure(folder: Path, record: CellRecord) -> None:
    """Add `<id>.<n>.json` to the folder. Raises UserError if the disk refuses."""
    try:
        folder.mkdir(exist_ok=True)
        while not write_new(free_name(folder, record.id), record.to_json().encode()):
            continue
    except OSError as error:
        raise disk_error(error, folder) from error


def latest_failures(folder: Path, finished: Callable[[], Container[str]]) -> Iterator[CellRecord]:
    """The last failure of each cell that did not get a record later, in the order of ids.

    `finished` is asked only where there are failures: it looks at every file of the results.
    """
    latest: dict[str, tuple[int, Path]] = {}
    files = list(folder.glob("*.json"))
    there = finished() if files else ()
    for path in files:
        cell, _, number = path.stem.partition(".")
        if number.isdigit() and cell not in there:
            latest[cell] = max(latest.get(cell, (0, path)), (int(number), path))
    for _, (_, path) in sorted(latest.items()):
        with suppress(ValueError, OSError):
            yield CellRecord.from_json(path.read_text(encoding="utf-8"))


# Scores of single examples and the names of these examples, as bytes.
#
# A file of outcomes is a header of 16 bytes (magic, version, kind, count) and the scores: one bit
# each where all are 0 or 1, else little-endian float32.


_MAGIC = b"FBOC"
_HEADER = struct.Struct("<4sHHQ")
_VERSION = 1
_BITS, _FLOATS = 0, 1


@dataclass(frozen=True, kw_only=True)
class Items:
    """The examples behind a row of outcomes, in order, and the image group of each."""

    names: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def hash(self) -> str:
        """20 hexadecimal digits; the name of the file that holds the items."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:20]

    def to_json(self) -> str:
        """Canonical JSON: equal items, equal text."""
        return canonical({"names": self.names, "groups": self.groups})

    @staticmethod
    def from_json(text: str) -> "Items":
        """Read items back; ValueError if the text holds none."""
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != {"names", "groups"}:
            raise ValueError("not a list of items")
        return Items(names=tuple(values["names"]), groups=tuple(values["groups"]))


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


__all__ = ["Items", "Store"]

_FOLDER = "`fusionbench run --out` makes such a folder"
_AGAIN = "run the study again to replace it"


class Store:
    """A folder of records. Open it to read; `create` it, as a context, to run cells into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        """Files that were found and cannot be used; they stay where they are."""
        self.history = History(folder / "study.json")
        self._ledger = Ledger(folder / ".checked")
        self._scored: dict[str, str] = {}
        """Hash of a file of outcomes -> a cell that has it."""

    @staticmethod
    def open(folder: str | Path) -> "Store":
        """An existing folder of results. Raises UserError if there is none."""
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, not a folder of results", _FOLDER)
        if not path.is_dir():
            raise UserError(f"no results in {path}", _FOLDER)
        return Store(path)

    @staticmethod
    def create(folder: str | Path) -> "Store":
        """A folder to run into, made if missing; several runs may write into it (see `claims`).

        Raises UserError without permission or space, and for a file.
        """
        path = Path(folder)
        make(path)
        remove_stale(path)
        return Store(path)

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held: each record is written at once."""

    def finished(self) -> dict[str, Path]:
        """Files of the cells that are done or skipped, by id, each checked to be whole.

        What was checked before and has not changed since is not read again. Files that are
        foreign, truncated or edited do not count and are named in `problems`.
        """
        scores = sizes(self.folder / "outcomes", ".bin")
        cells = self.folder / "cells"
        found: dict[str, Path] = {}
        fresh: dict[Path, tuple[str, State]] = {}
        for name, size in sorted(sizes(cells, "").items()):
            path, cell = cells / name, name.removesuffix(".json")
            state = (*size, *scores.get(cell, (0, 0)))
            if self._ledger.knows(cell, state):
                found[cell] = path
            else:
                fresh[path] = (cell, state)
        self.problems = list(problems(list(fresh)))
        wrong = {Path(problem.source) for problem in self.problems}
        sound = {path: checked for path, checked in fresh.items() if path not in wrong}
        self._ledger.add(sound.values())
        found |= {cell: path for path, (cell, _) in sound.items()}
        return dict(sorted(found.items()))

    def find(self, cell: str) -> CellRecord | None:
        """The record of a finished cell or tuning run, or None; a damaged one is none."""
        for part in ("cells", "tuning"):
            path = self.folder / part / f"{cell}.json"
            if path.exists() and self._sound(path):
                return read_record(path)
        return None

    def records(self, finished: Mapping[str, Path] | None = None) -> Iterator[CellRecord]:
        """Done and skipped cells, in the order of their ids; `finished` is what was found so."""
        shared = Shared()
        for cell, path in (self.finished() if finished is None else finished).items():
            record = CellRecord.from_checked(content(path).decode(), shared)
            # Equal hashes are equal files: an id is a hash over all fields, and slow to make.
            self._scored[record.outcomes] = cell
            yield record

    def failures(self, finished: Mapping[str, Path] | None = None) -> Iterator[CellRecord]:
        """The last failure of each cell that has no record."""
        there = self.finished if finished is None else lambda: finished
        return latest_failures(self.folder / "failures", there)

    def outcomes(self, record: CellRecord) -> Float[np.ndarray, " example"]:
        """A score for each example of `items(record)`. Raises UserError if damaged."""
        path = self._outcomes(self._scored.get(record.outcomes) or record.id)
        try:
            return decode(content(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}", _AGAIN) from error

    def items(self, record: CellRecord) -> Items:
        """The names and image groups of a record's examples. Raises UserError without them."""
        path = self.folder / "items" / f"{record.items}.json"
        try:
            return Items.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}", _AGAIN) from error

    def write(
        self,
        record: CellRecord,
        outcomes: Float[np.ndarray, " example"] | None = None,
        items: Items | None = None,
    ) -> CellRecord:
        """Store a cell or tuning run and give back what is on disk; a whole record is kept.

        A damaged file of that name is moved to `damaged/`. Raises UserError if the disk refuses.
        """
        part = "tuning" if record.spec.stage == "tune" else "cells"
        path = self.folder / part / f"{record.id}.json"
        try:
            if path.exists():
                if self._sound(path):
                    return read_record(path)
                moved = move_aside(path).relative_to(self.folder)
                message = f"moved to {moved}; its cell is written again"
                self.problems.append(Problem(source=str(path), message=message))
            record = self._write_parts(record, outcomes, items)
            if not write_new(path, record.to_json().encode()):
                return read_record(path)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        self._remember(path)
        return record

    def write_failure(self, record: CellRecord) -> None:
        """Keep a failure; it does not count as a record, so that the cell is tried again."""
        write_failure(self.folder / "failures", record)

    def _write_parts(
        self,
        record: CellRecord,
        outcomes: Float[np.ndarray, " example"] | None,
        items: Items | None,
    ) -> CellRecord:
        """Write what the record points to before the record itself."""
        if items is not None:
            record = replace(record, items=items.hash)
            file = self.folder / "items" / f"{items.hash}.json"
            if not file.exists():
                write_atomic(file, items.to_json().encode())
        if outcomes is not None:
            # Outcomes without a record are what a kill left; replacing them loses nothing.
            write_atomic(self._outcomes(record.id), encode(outcomes))
            record = replace(record, outcomes=sha256_of(self._outcomes(record.id)))
        return record

    def _remember(self, path: Path) -> None:
        if path.parent.name == "cells":
            state = (*size_of(path), *size_of(self._outcomes(path.stem)))
            self._ledger.add([(path.stem, state)])

    def _outcomes(self, cell: str) -> Path:
        return self.folder / "outcomes" / f"{cell}.bin"

    def _sound(self, path: Path) -> bool:
        """Whether a record and its outcomes are whole; notes in `problems` what is wrong."""
        found = list(problems([path]))
        self.problems += found
        return not found
