"""The files of a folder of results: made, cleaned, moved aside, and locked by the runs in it.

Several runs write into a folder at once, and each job runs in one of them. The operating system
releases the lock of a process that dies, on this host or on another one: no name of a host and no
number of a process decides who holds a lock. On a file system without locks nothing is locked: two
runs may then train the same cell, and the first record is kept.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.api.errors import UserError, disk_error
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import content, free_name, remove_older, write_atomic
from fusionbench.records.verified import ANSWERS

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCKS = "claims"
_POLL_SECONDS = 0.2
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
Place = tuple[str, str, int]
"""Label of a method, task, seed."""


@dataclass(frozen=True, kw_only=True)
class JobClaim:
    """A job that a process has begun."""

    cells: tuple[Place, ...]
    where: str
    """Host and number of the process; for people."""
    held: bool
    """Whether the process lives; False if it died before it had finished the job."""


@contextmanager
def claimed(
    folder: Path, job: str, *, wait: bool = False, cells: Sequence[Place] = ()
) -> Iterator[bool]:
    """Hold `claims/<job>.lock` inside the block; False if another run holds it.

    With `wait` it blocks until the lock is free. Meanwhile `claims/<job>.json` names `cells`.
    Raises UserError if the disk refuses.
    """
    home = folder / LOCKS
    lock = _lock(home / f"{job}.lock")
    if not _acquired(lock, timeout=-1 if wait else 0):
        yield False
        return
    note = home / f"{job}.json"
    _write(note, cells)
    try:
        yield True
    finally:
        note.unlink(missing_ok=True)
        # Unlinked while it is held: a waiting process notices and opens a new file.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            home.rmdir()


def claims(folder: Path) -> list[JobClaim]:
    """The jobs of a folder that have begun and not ended, by the names of their files."""
    found = []
    for note in sorted((folder / LOCKS).glob("*.json")):
        # A job may end meanwhile, and a kill may leave half of a note.
        with suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads(note.read_text(encoding="utf-8"))
            cells = tuple((str(m), str(t), int(s)) for m, t, s in values["cells"])
            held = _is_held(note.with_suffix(".lock"))
            found.append(JobClaim(cells=cells, where=str(values["where"]), held=held))
    return found


def _write(note: Path, cells: Sequence[Place]) -> None:
    values = {"cells": list(cells), "where": f"{socket.gethostname()}:{os.getpid()}"}
    # The run does without a note: it is for `status`.
    with suppress(OSError):
        write_atomic(note, json.dumps(values).encode())


def _is_held(file: Path) -> bool:
    """Whether a process holds the lock of a file; True where nothing can tell."""
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of the whole folder, to read and rewrite one of its shared files."""
    with locked(folder / ".lock"):
        yield


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock file, whose folder is made; waits while another process holds it.

    The lock ends with the process, on whatever host. On a file system without locks nothing is
    held. Raises UserError if the disk refuses.
    """
    lock = _lock(file)
    _acquired(lock, timeout=-1)
    try:
        yield
    finally:
        lock.release()


def _lock(file: Path) -> "BaseFileLock":
    from filelock import FileLock

    try:
        # The soft lock that takes over otherwise outlives a process that dies on another host.
        return FileLock(file, fallback_to_soft=False)
    except TypeError:
        # Earlier releases have no soft lock: they refuse a file system without locks themselves.
        return FileLock(file)


def _acquired(lock: "BaseFileLock", *, timeout: float) -> bool:
    from filelock import Timeout

    home = Path(lock.lock_file).parent
    while True:
        try:
            home.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout, poll_interval=_POLL_SECONDS)
        except Timeout:
            return False
        except (FileNotFoundError, FileExistsError) as error:
            # Another run has just removed the empty folder of locks: perhaps between the two looks
            # of `mkdir`, which then says that a file stands there.
            _require_no_file(home, error)
        except NotImplementedError:
            return True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return True
            raise disk_error(error, home) from error
        else:
            return True


def _require_no_file(home: Path, error: OSError) -> None:
    """Raise UserError if a file or a link to nothing stands there, by one look."""
    try:
        is_folder = stat.S_ISDIR(home.stat().st_mode)
    except FileNotFoundError:
        is_folder = not home.is_symlink()
    if not is_folder:
        raise disk_error(error, home) from error


CONFLICTS = "conflicts"
MODELS = "models"
SUPERSEDED = "superseded"
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
    for part in ("", "report", "report/tables", "report/figures", CONFLICTS, ANSWERS, MODELS):
        remove_older(path / part, ".*.tmp", _STALE_SECONDS)
    for part in PARTS:
        remove_older(path / part, ".*", _STALE_SECONDS)


def move_aside(file: Path, folder: Path) -> Path | None:
    """Move a damaged file to `damaged/` of the folder of results and return its new path.

    None if it is gone, since another run moves files aside too. Raises OSError.
    """
    home = folder / "damaged"
    home.mkdir(exist_ok=True)
    moved = home / f"{file.stem}.{secrets.token_hex(4)}{file.suffix}"
    try:
        return file.rename(moved)
    except FileNotFoundError:
        return None


def set_aside(record: CellRecord, folder: Path) -> bool:
    """Move a record with its outcomes, answers and trained model to `superseded/`.

    The record goes first: what a kill leaves behind belongs to no record. False if its folder has
    no file for it. Raises UserError if the disk refuses.
    """
    home = folder / SUPERSEDED
    part = "tuning" if record.spec.stage == "tune" else "cells"
    try:
        home.mkdir(exist_ok=True)
        target = free_name(home, record.id)
        number = target.stem.rpartition(".")[2]
        try:
            (folder / part / f"{record.id}.json").rename(target)
        except FileNotFoundError:
            return False
        for place in ("outcomes", ANSWERS, CONFLICTS):
            _follow(folder / place, record.id, home, number)
        if record.model:
            _follow(folder / MODELS, record.model, home, number)
    except OSError as error:
        raise disk_error(error, folder) from error
    return True


def _follow(place: Path, stem: str, home: Path, number: str) -> None:
    """Move the files of a cell or model; those that another process moved first are left."""
    for file in sorted(place.glob(f"{stem}*")):
        with suppress(FileNotFoundError):
            file.rename(home / f"{stem}.{number}.{place.name}{file.name.removeprefix(stem)}")


def conflict_text(record: CellRecord) -> str:
    """What is said of another result of a cell that has a record."""
    spec = record.spec
    what = f"{record.label or spec.method} on {spec.task}, seed {spec.seed}"
    return (
        f"another run of cell {record.id} ({what}) gave another result: {record.status}, score "
        f"{record.score}; the first record counts"
    )


def failure_files(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Source and reader of each failure, earlier ones of a cell first."""
    found = []
    for path in folder.glob("*.json"):
        cell, _, number = path.stem.partition(".")
        if number.isdecimal():
            found.append((cell, int(number), path))
    for _, _, path in sorted(found):
        yield str(path), partial(_text, path)


def _text(path: Path) -> str:
    return content(path).decode()
