"""The folder of results itself: made, locked against a second run, cleaned of what a kill left."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fusionbench.api.errors import UserError, disk_error
from fusionbench.newfile import free_name

if TYPE_CHECKING:
    from filelock import BaseFileLock

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


def lock(path: Path) -> "BaseFileLock":
    """The lock of the folder, held by this process. Raises UserError if another run holds it."""
    from filelock import FileLock, Timeout

    held = FileLock(path / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another run is writing to {path}", "wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise disk_error(error, path) from error
    return held


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
