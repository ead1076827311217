"""A folder of results: one immutable JSON file per cell, or the compact form of `archive`.

cells/<id>.json      done and skipped cells            outcomes/<id>.bin   outcome of each example
tuning/<id>.json     runs that chose a learning rate   items/<hash>.json   names of the examples
facts/<hash>.json    what many records share           failures/<id>.<n>.json
answers/<id>.jsonl.gz   texts of all answers           models/<id>.safetensors   trained weights
study.json           the requests, oldest first        damaged/            files moved aside
conflicts/<id>-<hash>.json   later runs of a cell with other outcomes than its record
superseded/          records of a plug-in that was edited since, which no table reads

A record appears under its name complete or not at all, after its facts and its outcomes. What is
read passes `verified.examine`; what does not is named in `problems`, left alone, and run again.
"""

import hashlib
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float

from fusionbench.api.errors import Problem, UserError, disk_error
from fusionbench.records.archive import TUNING, Archive, SoundLines
from fusionbench.records.cell import CellRecord, canonical, json_object
from fusionbench.records.files import ANY_SIZE, content, free_name, why, write_atomic
from fusionbench.records.folder import (
    CONFLICTS,
    conflict_text,
    failure_files,
    make,
    move_aside,
    remove_stale,
)
from fusionbench.records.history import History
from fusionbench.records.outcomes import Items, Said, decode, encode, items_hash, pack, unpack
from fusionbench.records.schema import Fact, Facts, check, check_outcomes, check_record, normal_text
from fusionbench.records.text import without_user
from fusionbench.records.verified import (
    ANSWERS,
    ANSWERS_END,
    FileState,
    Parts,
    Passed,
    VerifiedFiles,
    answers_file,
    examine,
    examined,
    size_of,
    sizes,
    text_hash,
)

__all__ = ["Items", "Store", "decode", "encode"]

_FOLDER = "`fusionbench run --out` makes such a folder"
_REPLACED = (
    "sound, but not what was checked here before: it was edited and signed anew, or replaced; it "
    "counts (remove .checked if that was meant)"
)
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
        self._counts: dict[str, int] = {}
        self._parts = Parts(
            facts=self.facts,
            outcomes=self.outcome_bytes,
            answers=self.answer_bytes,
            items=self._count,
        )
        self._packed = SoundLines(self._archive, self._verified, self._parts, self._rests_on)
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
        """Files of the sound cells that are done, skipped or diverged, by id, in order.

        `reread`: every file is read and hashed, as whatever shows numbers asks for. Without it a
        file that was checked before and has not changed since is not read again, as a plan needs.
        What is foreign, truncated or edited does not count and is listed in `problems`.
        """
        self._verified.recheck(self._rests_on_sound)
        packed = self._packed.find(reread=reread)
        self.problems = [*self._packed.problems, *self.history.problems(), *self._conflicts()]
        found = {cell: self._archive.file for cell, line in packed.items() if TUNING not in line}
        return dict(sorted((found | self._live("cells", reread=reread)).items()))

    def tuning(self) -> dict[str, Path]:
        """Files of the sound tuning runs, by id, in the order of ids."""
        packed = self._packed.find(reread=False)
        found = {cell: self._archive.file for cell, line in packed.items() if TUNING in line}
        return dict(sorted((found | self._live("tuning", reread=True)).items()))

    def find(self, cell: str) -> CellRecord | None:
        """The record of a sound cell or tuning run; None without one."""
        for part in ("cells", "tuning"):
            if (known := self._sound(self._file(part, cell))) is not None:
                return known
        line = self._packed.find(reread=False).get(cell)
        return None if line is None else self.facts.read(line, cell)

    def records(self, finished: Mapping[str, Path] | None = None) -> Iterator[CellRecord]:
        """The records of `finished` (default: of all finished cells), in its order.

        One that was removed or damaged since it was found is left out and noted in `problems`.
        """
        for cell, path in (self.finished(reread=True) if finished is None else finished).items():
            packed = path == self._archive.file
            try:
                record = self._packed.record(cell) if packed else self._read(cell, path)
            except (OSError, ValueError) as error:
                said = f"ignored: {why(error)}"
                self.problems.append(Problem(source=str(path), message=said))
                continue
            # Equal hashes are equal files: an id is a hash over all fields, and slow to make.
            self._scored[record.outcomes] = cell
            yield record

    def _read(self, cell: str, path: Path) -> CellRecord:
        return self.facts.build(check(content(path).decode(), cell))

    def failures(self, finished: Container[str] | None = None) -> Iterator[CellRecord]:
        """The last failure of each cell that has no record, in the order of ids.

        One that cannot be read is noted in `problems`, and the one before it counts.
        """
        files = [*self._archive.failures(), *failure_files(self.folder / "failures")]
        if not files:
            return
        # First: it begins the list of problems anew.
        known = self.finished() if finished is None else finished
        found: dict[str, CellRecord] = {}
        for source, read in files:
            try:
                record = self.facts.read(read())
            except (OSError, ValueError) as error:
                said = f"ignored: the failure of a cell cannot be read: {why(error)}"
                self.problems.append(Problem(source=source, message=said))
                continue
            found[record.id] = record
        yield from (found[cell] for cell in sorted(found) if cell not in known)

    def outcomes(self, record: CellRecord) -> Float[np.ndarray, " example"]:
        """The outcome of each example of `items(record)`. Raises UserError if damaged."""
        cell = self._scored.get(record.outcomes) or record.id
        try:
            return decode(self.outcome_bytes(cell, record.outcomes))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self._outcomes(cell)}: {why(error)}", _AGAIN) from error

    def outcome_bytes(self, cell: str, digest: str) -> bytes:
        """The encoded outcomes of a cell, with this SHA-256.

        Raises KeyError without any, ValueError for others, OSError for what cannot be read.
        """
        # In the compact form, in the cell's own file, beside that of another run.
        own = [partial(self._own_outcomes, name) for name in (cell, f"{cell}-{digest[:16]}")]
        return _with_hash(digest, [partial(self._archive.outcomes, cell), *own], "outcomes")

    def answer_bytes(self, cell: str, digest: str) -> bytes:
        """The file of a cell's answers, with this SHA-256. Raises as `outcome_bytes` does."""
        own = [partial(self._own_answers, name) for name in (cell, f"{cell}-{digest[:16]}")]
        return _with_hash(digest, [partial(self._archive.answers, cell), *own], "answers")

    def answers(self, record: CellRecord) -> list[Said]:
        """The texts of a record's answers, in the order of its items.

        Raises UserError for a record without any, and for a file that is missing or damaged.
        """
        path = answers_file(self.folder, record.id)
        if not record.answers:
            track = record.spec.track
            raise UserError(f"cell {record.id} kept no answers", f"it is of the track {track}")
        try:
            return unpack(self.answer_bytes(record.id, record.answers))
        except KeyError as error:
            raise UserError(f"{path} is missing", _AGAIN) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}", _AGAIN) from error

    def items(self, record: CellRecord) -> Items:
        """The names and image groups of a record's examples. Raises UserError without them."""
        path = self.folder / "items" / f"{record.items}.json"
        try:
            return self._items(record.items)
        except (KeyError, FileNotFoundError) as error:
            raise UserError(f"{path} is missing", _AGAIN) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {why(error)}", _AGAIN) from error

    def write(
        self,
        record: CellRecord,
        outcomes: Float[np.ndarray, " example"] | None = None,
        items: Items | None = None,
        answers: Sequence[Said] = (),
    ) -> CellRecord:
        """Store a cell or tuning run and return the record on disk; the first sound one is kept.

        Another result goes to `conflicts/` and is named in `problems`; a damaged file goes to
        `damaged/`. Raises UserError if the disk refuses, ValueError for values out of range.
        """
        record = without_user(record)
        check_record(replace(record, items="", answers=""))
        check_outcomes(record, outcomes, len(items.names) if items else None)
        path = self._file("tuning" if record.spec.stage == "tune" else "cells", record.id)
        try:
            while (known := self.find(record.id)) is None:
                if os.path.lexists(path):
                    self._move_aside(path)
                record = self._write_parts(record, outcomes, items, answers)
                text = self._normal(record)
                if write_atomic(path, text, replace=False):
                    self._remember(path, text)
                    return record
            return self._kept(known, record, outcomes)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _kept(
        self, known: CellRecord, record: CellRecord, outcomes: Float[np.ndarray, " example"] | None
    ) -> CellRecord:
        """The record that was first; another result of the same cell is kept beside it."""
        encoded = None if outcomes is None else encode(outcomes)
        digest = "" if encoded is None else hashlib.sha256(encoded).hexdigest()
        if (known.status, known.score, known.outcomes) != (record.status, record.score, digest):
            if encoded is not None:
                write_atomic(self._outcomes(f"{record.id}-{digest[:16]}"), encoded)
            text = self._normal(replace(record, outcomes=digest, items=known.items, answers=""))
            name = f"{record.id}-{text_hash(text)[:16]}"
            write_atomic(self._file(CONFLICTS, name), text, replace=False)
            self.problems += self._conflicts(name)
        return known

    def _conflicts(self, name: str = "") -> Iterator[Problem]:
        """What other runs of recorded cells gave, one line for each (of all, or of one name)."""
        for one in [name] if name else sorted(sizes(self.folder / CONFLICTS, ".json")):
            file = self._file(CONFLICTS, one)
            try:
                said = conflict_text(self.facts.read(content(file).decode()))
            except (OSError, ValueError) as error:
                said = f"ignored: {why(error)}"
            yield Problem(source=str(file), message=said)

    def _move_aside(self, path: Path) -> None:
        """Move a damaged file to `damaged/`, if no other run has done so before."""
        moved = move_aside(path, self.folder)
        if moved is not None:
            message = f"moved to {moved.relative_to(self.folder)}; it is written again"
            self.problems.append(Problem(source=str(path), message=message))

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
            self._write_items(items)
        if outcomes is not None:
            digest = _write_own(self._outcomes, record.id, encode(outcomes))
            record = replace(record, outcomes=digest)
        if answers:
            file = partial(answers_file, self.folder)
            record = replace(record, answers=_write_own(file, record.id, pack(answers)))
        return record

    def _write_items(self, items: Items) -> None:
        file = self.folder / "items" / f"{items.hash}.json"
        try:
            self._items(items.hash)
        except (OSError, KeyError, ValueError):
            if os.path.lexists(file):
                self._move_aside(file)
            write_atomic(file, items.to_json().encode())
        self._counts[items.hash] = len(items.names)

    def _items(self, name: str) -> Items:
        """The items of that hash, compared. Raises KeyError, OSError or ValueError."""
        path = self.folder / "items" / f"{name}.json"
        if not os.path.lexists(path):
            return self._archive.items(name)
        text = content(path)
        if items_hash(text) != name:
            raise ValueError(f"its items were damaged or edited ({path.name})")
        return Items.from_json(text.decode())

    def _count(self, name: str) -> int:
        if name not in self._counts:
            self._counts[name] = len(self._items(name).names)
        return self._counts[name]

    def _rests_on_sound(self, name: str) -> bool:
        """Whether a fact or a file of items is still what checks have seen."""
        kind, _, name = name.partition("/")
        try:
            if kind == "facts":
                self.facts.require(name)
            else:
                self._counts.pop(name, None)
                self._count(name)
        except (OSError, KeyError, ValueError):
            return False
        return True

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
        except (KeyError, ValueError):
            return json_object(content(self._file("facts", name)).decode())

    def _find_facts(self) -> None:
        """Read facts and items, so that forked processes share them and the cache names them."""
        for name in sizes(self.folder / "facts", ".json"):
            with suppress(ValueError):
                self.facts.require(name)
        for name in sizes(self.folder / "items", ".json"):
            with suppress(OSError, KeyError, ValueError):
                self._count(name)

    def _rests_on(self) -> list[str]:
        return [f"facts/{one}" for one in self.facts] + [f"items/{one}" for one in self._counts]

    def _live(self, part: str, *, reread: bool) -> dict[str, Path]:
        """The sound files of `cells/` or `tuning/`; notes the others in `problems`."""
        found: dict[str, Path] = {}
        fresh: dict[Path, FileState] = {}
        for cell, path, state in self._listed(part):
            if not reread and self._verified.knows(cell, state):
                found[cell] = path
            else:
                fresh[path] = state
        if any(path.stem not in self._verified.digests for path in fresh):
            self._find_facts()
        passed: list[Passed] = []
        results = examined(list(fresh), self._parts, self._verified.digests)
        for (path, state), one in zip(fresh.items(), results, strict=True):
            if isinstance(one, Problem):
                self.problems.append(one)
                continue
            found[path.stem] = path
            if self._verified.digests.get(path.stem, one) == one:
                passed.append((path.stem, one, state))
            else:
                self.problems.append(Problem(source=str(path), message=_REPLACED))
        self._verified.add(passed, self._rests_on())
        return found

    def _listed(self, part: str) -> Iterator[tuple[str, Path, FileState]]:
        """The files of a part in order: cell, path, and the state of what belongs to it."""
        others: dict[str, FileState] = {}
        if part == "cells":
            for stem, state in sorted(sizes(self.folder / "outcomes", ".bin").items()):
                cell = stem.partition("-")[0]
                others[cell] = (*others.get(cell, ()), *state)
            for stem, state in sorted(sizes(self.folder / ANSWERS, ANSWERS_END).items()):
                cell = stem.partition("-")[0]
                others[cell] = (*others.get(cell, ()), *state)
        for name, state in sorted(sizes(self.folder / part, "").items()):
            cell = name.removesuffix(".json")
            yield cell, self.folder / part / name, (*state, *others.get(cell, ()))

    def _remember(self, path: Path, text: bytes) -> None:
        if path.parent.name == "cells":
            files = (path, self._outcomes(path.stem), answers_file(self.folder, path.stem))
            state = sum((one for one in map(size_of, files) if any(one)), ())
            self._verified.add([(path.stem, text_hash(text), state)], self._rests_on())

    def _file(self, part: str, name: str) -> Path:
        return self.folder / part / f"{name}.json"

    def _outcomes(self, cell: str) -> Path:
        return self.folder / "outcomes" / f"{cell}.bin"

    def _own_outcomes(self, cell: str) -> bytes:
        return content(self._outcomes(cell))

    def _own_answers(self, cell: str) -> bytes:
        return content(answers_file(self.folder, cell), ANY_SIZE)

    def _sound(self, path: Path) -> CellRecord | None:
        """The record of a file that is sound; notes in `problems` what is wrong with another."""
        try:
            return examine(content(path).decode(), self._parts, path.stem)
        except (OSError, ValueError) as error:
            if os.path.lexists(path):
                said = f"ignored: {why(error)}"
                self.problems.append(Problem(source=str(path), message=said))
            return None


def _write_own(file: Callable[[str], Path], cell: str, written: bytes) -> str:
    """Write a file of a cell and return its SHA-256; no other file is overwritten.

    A file of that name may belong to another run, which is about to write its record, or be what a
    kill left: then the name holds the hash.
    """
    digest = hashlib.sha256(written).hexdigest()
    own = file(cell)
    try:
        taken = not write_atomic(own, written, replace=False) and content(own, ANY_SIZE) != written
    except ValueError:
        taken = True
    if taken:
        write_atomic(file(f"{cell}-{digest[:16]}"), written)
    return digest


def _with_hash(digest: str, places: Sequence[Callable[[], bytes]], what: str) -> bytes:
    """The first bytes with this SHA-256; raises as `Store.outcome_bytes` does."""
    problem: Exception = KeyError(f"its {what} are missing")
    for read in places:
        try:
            found = read()
        except ValueError as error:
            problem = error
        except (KeyError, FileNotFoundError):
            continue
        else:
            if hashlib.sha256(found).hexdigest() == digest:
                return found
            problem = ValueError(f"its {what} were damaged or edited")
    raise problem
