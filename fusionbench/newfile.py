"""Files that are written once and never replaced."""

import errno
import os
import tempfile
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_new(path: Path, content: bytes) -> bool:
    """Write a file whole, or leave the one that is there: False if there was one.

    The bytes are on disk before the name is, so that a kill or a full disk leaves no torn file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        _publish(Path(temporary), path)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name; FileExistsError if the name is taken."""
    try:
        # A hard link fails where a rename would overwrite.
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS or path.exists():
            raise
        # Some network and FAT file systems have no links; the folder's lock has to do.
        temporary.rename(path)


def free_name(folder: Path, stem: str) -> Path:
    """`<stem>.<n>.json` with the first n that is free."""
    number = 1
    while (folder / f"{stem}.{number}.json").exists():
        number += 1
    return folder / f"{stem}.{number}.json"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
