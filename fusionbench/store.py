"""Records on disk: one immutable JSON file per cell, with the outcomes of its examples beside it.

cells/<id>.json      finished and skipped cells        outcomes/<id>.bin   a score per example
tuning/<id>.json     runs that chose a learning rate   items/<hash>.json   the examples' names
failures/<id>.<n>.json   what went wrong, kept         damaged/            moved here, never deleted
study.json           what was asked for, run by run

A record appears under its name whole or not at all, and after its outcomes. No torch here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Float

from fusionbench import folder as results
from fusionbench.api.errors import Problem, UserError, disk_error
from fusionbench.cache import sha256_of, write_atomic
from fusionbench.failures import latest_failures, write_failure
from fusionbench.history import History
from fusionbench.ledger import Ledger, State, size_of, sizes
from fusionbench.newfile import write_new
from fusionbench.outcomes import Items, decode, encode
from fusionbench.records import CellRecord
from fusionbench.sharing import Shared
from fusionbench.whole import content, problems, read_record

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["Items", "Store"]

_FOLDER = "`fusionbench run --out` makes such a folder"
_AGAIN = "run the study again to replace it"


class Store:
    """A folder of records. Open it to read; `create` it, as a context, to run cells into it."""

    def __init__(self, folder: Path, held: "BaseFileLock | None" = None) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        """Files that were found and cannot be used; they stay where they are."""
        self.history = History(folder / "study.json")
        self._ledger = Ledger(folder / ".checked")
        self._scored: dict[str, str] = {}
        """Hash of a file of outcomes -> a cell that has it."""
        self._lock = held

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
        """A folder to run into, made if missing and locked against a second run.

        Raises UserError without permission or space, for a file, and while another run holds it.
        """
        path = Path(folder)
        results.make(path)
        held = results.lock(path)
        results.remove_stale(path)
        return Store(path, held)

    def __enter__(self) -> Self:
        """The store itself, locked by `create`."""
        return self

    def __exit__(self, *error: object) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.release()

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
                moved = results.move_aside(path).relative_to(self.folder)
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
