"""Locks in a results folder: several runs write into it at once, and each job runs in one of them.

The operating system releases the lock of a process that dies, on this host or on another one: no
name of a host and no number of a process decides who holds a lock. On a file system without locks
nothing is locked: two runs may then train the same cell, and the first record is kept.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.api.errors import disk_error
from fusionbench.records.files import write_atomic

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCKS = "claims"
_POLL_SECONDS = 0.2
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
Place = tuple[str, str, int]
"""Label of a method, task, seed."""


@dataclass(frozen=True, kw_only=True)
class Claim:
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


def claims(folder: Path) -> list[Claim]:
    """The jobs of a folder that have begun and not ended, by the names of their files."""
    found = []
    for note in sorted((folder / LOCKS).glob("*.json")):
        # A job may end meanwhile, and a kill may leave half of a note.
        with suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads(note.read_text(encoding="utf-8"))
            cells = tuple((str(m), str(t), int(s)) for m, t, s in values["cells"])
            held = _is_held(note.with_suffix(".lock"))
            found.append(Claim(cells=cells, where=str(values["where"]), held=held))
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
    lock = _lock(folder / ".lock")
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
        except FileNotFoundError:
            # Another run has just removed the empty folder of locks.
            continue
        except NotImplementedError:
            return True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return True
            raise disk_error(error, home) from error
        return True
