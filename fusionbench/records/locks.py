"""Locks in a results folder: several runs write into it at once, and each job runs in one of them.

The operating system releases the lock of a process that dies.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.api.errors import disk_error

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCKS = "claims"
_POLL_SECONDS = 0.2


@contextmanager
def claimed(folder: Path, job: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold `claims/<job>.lock` inside the block; False if another run holds it.

    With `wait` it blocks until the lock is free. Raises UserError if the disk refuses.
    """
    home = folder / LOCKS
    lock = _lock(home / f"{job}.lock")
    if not _acquired(lock, timeout=-1 if wait else 0):
        yield False
        return
    try:
        yield True
    finally:
        # Unlinked while it is held: a waiting process notices and opens a new file.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            home.rmdir()


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
        except OSError as error:
            raise disk_error(error, home) from error
        return True
