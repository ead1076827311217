"""A folder of results: one immutable JSON file per cell, or the compact form of `archive`.

cells/<id>.json      done and skipped cells            outcomes/<id>.bin   outcome of each example
tuning/<id>.json     runs that chose a learning rate   items/<hash>.json   names of the examples
facts/<hash>.json    what many records share           failures/<id>.<n>.json
answers/<id>.jsonl.gz   texts of all answers           models/<id>.safetensors   trained weights
study.json           the requests, oldest first        damaged/            records moved aside

A record appears under its name complete or not at all, after its facts and its outcomes.
"""

import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import Problem, UserError, disk_error
from fusionbench.records.answers import Said, pack, unpack
from fusionbench.records.archive import TUNING, Archive
from fusionbench.records.cell import CellRecord, canonical, json_object
from fusionbench.records.facts import Fact, Facts, check, normal_text
from fusionbench.records.files import content, free_name, sha256_of, write_atomic
from fusionbench.records.history import History
from fusionbench.records.outcomes import Items, decode, encode
from fusionbench.records.text import without_user
from fusionbench.records.verified import (
    ANSWERS,
    ANSWERS_END,
    FileState,
    VerifiedFiles,
    answers_file,
    problems,
    size_of,
    sizes,
)

__all__ = ["Items", "Store", "decode", "encode"]

_FOLDER = "`fusionbench run --out` makes such a folder"
_AGAIN = "run the study again to replace it"


class Store:
    """A folder of records. `open` it to read; `create` it, as a context, to run cells into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        """Files and lines that cannot be used; they stay where they are."""
        self.history = History(folder / "study.json")
        self.facts = Facts(self._find_fact)
        self._archive = Archive(folder)
        self._verified = VerifiedFiles(folder / ".checked")
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
        """A folder to run into, made if missing; several runs may write into it (see `locks`).

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

    def finished(self, *, reread: bool = False) -> dict[str, Path]:
        """Files of the sound cells that are done or skipped, by id, in the order of ids.

        A file that was checked before and has not changed since is not read again, unless `reread`
        asks for it. Files and lines that are foreign, truncated or edited do not count and are
        listed in `problems`.
        """
        self._verified.recheck(self.facts)
        if reread:
            self._verified.states.clear()
        packed, noted = self._packed
        self.problems = list(noted)
        found = {cell: self._archive.file for cell, line in packed.items() if TUNING not in line}
        return dict(sorted((found | self._live("cells")).items()))

    def tuning(self) -> dict[str, Path]:
        """Files of the sound tuning runs, by id, in the order of ids."""
        packed, _ = self._packed
        found = {cell: self._archive.file for cell, line in packed.items() if TUNING in line}
        return dict(sorted((found | self._live("tuning")).items()))

    def find(self, cell: str) -> CellRecord | None:
        """The record of a sound cell or tuning run; None without one."""
        for part in ("cells", "tuning"):
            path = self._file(part, cell)
            if path.exists() and self._sound(path):
                return self._read(path)
        line = self._packed[0].get(cell)
        return None if line is None else self.facts.read(line)

    def records(self, finished: Mapping[str, Path] | None = None) -> Iterator[CellRecord]:
        """The records of `finished` (default: of all finished cells), in its order.

        Raises UserError for a record with unknown fields.
        """
        for cell, path in (self.finished() if finished is None else finished).items():
            packed = path == self._archive.file
            text = self._archive.lines[cell] if packed else content(path).decode()
            try:
                record = self.facts.build(json_object(text))
            except ValueError as error:
                raise UserError(f"{path}: {error}", _AGAIN) from error
            # Equal hashes are equal files: an id is a hash over all fields, and slow to make.
            self._scored[record.outcomes] = cell
            yield record

    def failures(self, finished: Container[str] | None = None) -> Iterator[CellRecord]:
        """The last failure of each cell that has no record, in the order of ids."""
        texts = dict(_latest_failures(self.folder / "failures"))
        packed = list(self._archive.failures())
        if not texts and not packed:
            return
        known = self.finished() if finished is None else finished
        found: dict[str, CellRecord] = {}
        for text in (*packed, *texts.values()):
            with suppress(ValueError, KeyError):
                if (cell := check(text)["id"]) not in known:
                    found[cell] = self.facts.read(text)
        yield from (found[cell] for cell in sorted(found))

    def outcomes(self, record: CellRecord) -> Float[np.ndarray, " example"]:
        """The outcome of each example of `items(record)`. Raises UserError if damaged."""
        cell = self._scored.get(record.outcomes) or record.id
        try:
            return decode(self.outcome_bytes(cell))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self._outcomes(cell)}: {error}", _AGAIN) from error

    def outcome_bytes(self, cell: str) -> bytes:
        """The encoded outcomes of a cell. Raises OSError, ValueError or KeyError."""
        path = self._outcomes(cell)
        return content(path) if path.exists() else self._archive.outcomes(cell)

    def answers(self, record: CellRecord) -> list[Said]:
        """The texts of a record's answers, in the order of its items.

        Raises UserError for a record without any, and for a file that is missing or damaged.
        """
        path = answers_file(self.folder, record.id)
        if not record.answers:
            track = record.spec.track
            raise UserError(f"cell {record.id} kept no answers", f"it is of the track {track}")
        try:
            if sha256_of(path) != record.answers:
                raise ValueError("damaged or edited")
            return unpack(content(path))
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing", _AGAIN) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}", _AGAIN) from error

    def items(self, record: CellRecord) -> Items:
        """The names and image groups of a record's examples. Raises UserError without them."""
        path = self.folder / "items" / f"{record.items}.json"
        try:
            if not path.exists():
                return self._archive.items(record.items)
            return Items.from_json(path.read_text(encoding="utf-8"))
        except KeyError as error:
            raise UserError(f"{path} is missing", _AGAIN) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}", _AGAIN) from error

    def write(
        self,
        record: CellRecord,
        outcomes: Float[np.ndarray, " example"] | None = None,
        items: Items | None = None,
        answers: Sequence[Said] = (),
    ) -> CellRecord:
        """Store a cell or tuning run and return the record on disk; a sound one is kept.

        A damaged file of that name is moved to `damaged/`. Raises UserError if the disk refuses.
        """
        record = without_user(record)
        path = self._file("tuning" if record.spec.stage == "tune" else "cells", record.id)
        try:
            if (known := self.find(record.id)) is not None:
                return known
            if path.exists():
                moved = move_aside(path).relative_to(self.folder)
                message = f"moved to {moved}; its cell is written again"
                self.problems.append(Problem(source=str(path), message=message))
            record = self._write_parts(record, outcomes, items, answers)
            if not write_atomic(path, self._normal(record), replace=False):
                return self._read(path)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        self._remember(path)
        return record

    def write_failure(self, record: CellRecord) -> None:
        """Add `failures/<id>.<n>.json`; the cell counts as missing and is tried again.

        Raises UserError if the disk refuses.
        """
        folder = self.folder / "failures"
        try:
            text = self._normal(without_user(record))
            while not write_atomic(free_name(folder, record.id), text, replace=False):
                continue
        except OSError as error:
            raise disk_error(error, folder) from error

    def _write_parts(
        self,
        record: CellRecord,
        outcomes: Float[np.ndarray, " example"] | None,
        items: Items | None,
        answers: Sequence[Said],
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
        if answers:
            file = answers_file(self.folder, record.id)
            write_atomic(file, pack(answers))
            record = replace(record, answers=sha256_of(file))
        return record

    def _normal(self, record: CellRecord) -> bytes:
        """The record's line; its facts are on disk when this returns. Raises OSError."""
        text, facts = normal_text(record)
        for name, fact in facts.items():
            try:
                self.facts.require(name)
            except ValueError:
                write_atomic(self._file("facts", name), canonical(fact).encode())
        return text.encode()

    def _find_fact(self, name: str) -> Fact:
        try:
            return self._archive.fact(name)
        except KeyError:
            return json_object(content(self._file("facts", name)).decode())

    def _find_facts(self) -> None:
        """Read all facts, so that forked processes share them and the cache names them."""
        for name in sizes(self.folder / "facts", ".json"):
            with suppress(ValueError):
                self.facts.require(name)

    @cached_property
    def _packed(self) -> tuple[Mapping[str, str], list[Problem]]:
        """The sound lines of the compact form by id, and what is wrong with others."""
        lines, state = self._archive.lines, self._archive.state
        if self._verified.knows(self._archive.file.name, state):
            return lines, []
        wrong = list(self._archive.problems(self.facts))
        if not wrong and lines:
            self._verified.add([(self._archive.file.name, state)], self.facts)
        damaged = {cell for cell, _ in wrong}
        sound = {cell: line for cell, line in lines.items() if cell not in damaged}
        return sound, [problem for _, problem in wrong]

    def _live(self, part: str) -> dict[str, Path]:
        """The sound files of `cells/` or `tuning/`; notes the others in `problems`."""
        scores = sizes(self.folder / "outcomes", ".bin") if part == "cells" else {}
        answers = sizes(self.folder / ANSWERS, ANSWERS_END) if part == "cells" else {}
        found: dict[str, Path] = {}
        fresh: dict[Path, tuple[str, FileState]] = {}
        for name, size in sorted(sizes(self.folder / part, "").items()):
            path, cell = self.folder / part / name, name.removesuffix(".json")
            state = (*size, *scores.get(cell, (0, 0)), *answers.get(cell, ()))
            if self._verified.knows(cell, state):
                found[cell] = path
            else:
                fresh[path] = (cell, state)
        if fresh:
            self._find_facts()
        noted = list(problems(list(fresh), self.facts))
        self.problems += noted
        wrong = {Path(problem.source) for problem in noted}
        sound = {path: checked for path, checked in fresh.items() if path not in wrong}
        self._verified.add(sound.values(), self.facts)
        return found | {cell: path for path, (cell, _) in sound.items()}

    def _remember(self, path: Path) -> None:
        if path.parent.name == "cells":
            answers = answers_file(self.folder, path.stem)
            said = size_of(answers) if answers.exists() else ()
            state = (*size_of(path), *size_of(self._outcomes(path.stem)), *said)
            self._verified.add([(path.stem, state)], self.facts)

    def _file(self, part: str, name: str) -> Path:
        return self.folder / part / f"{name}.json"

    def _outcomes(self, cell: str) -> Path:
        return self.folder / "outcomes" / f"{cell}.bin"

    def _read(self, path: Path) -> CellRecord:
        return self.facts.read(content(path).decode())

    def _sound(self, path: Path) -> bool:
        """Whether a record and its outcomes are sound; notes in `problems` what is wrong."""
        found = list(problems([path], self.facts))
        self.problems += found
        return not found


MODELS = "models"
PARTS = ("cells", "outcomes", "items", "tuning", "failures", "facts")
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
    for part in (*PARTS, ANSWERS, MODELS):
        for file in (path / part).glob(".*"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                    file.unlink()


def move_aside(file: Path) -> Path:
    """Move a damaged record to `damaged/` and return its new path."""
    folder = file.parent.parent / "damaged"
    folder.mkdir(exist_ok=True)
    return file.rename(free_name(folder, file.stem))


def _latest_failures(folder: Path) -> Iterable[tuple[str, str]]:
    """The last failure of each cell: its id and its text."""
    latest: dict[str, tuple[int, Path]] = {}
    for path in folder.glob("*.json"):
        cell, _, number = path.stem.partition(".")
        if number.isdigit():
            latest[cell] = max(latest.get(cell, (0, path)), (int(number), path))
    for cell, (_, path) in latest.items():
        with suppress(OSError):
            yield cell, path.read_text(encoding="utf-8")
