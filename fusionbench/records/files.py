"""Files that are written once and never replaced."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# The cache folder: files written whole or not at all, and hashes that are computed once.
#
# Standard library only: planning reads it without torch.


_CHUNK = 1 << 20


def cache_dir(*parts: str) -> Path:
    """`$FUSIONBENCH_CACHE`, or `~/.cache/fusionbench`, and a path inside it; not created."""
    root = os.environ.get("FUSIONBENCH_CACHE") or "~/.cache/fusionbench"
    return Path(root).expanduser().joinpath(*parts)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that other processes see complete or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def file_hash(path: Path, *, compute: Callable[[Path], str] = sha256_of, kind: str = "") -> str:
    """Hash of a file, computed again only when its size or time of change differs.

    `kind` keeps the results of different `compute` functions apart.
    """
    state = path.stat()
    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{kind}"
    note = cache_dir("hashes", hashlib.sha256(key.encode()).hexdigest()[:32])
    if note.is_file() and (known := note.read_text().strip()):
        return known
    found = compute(path)
    # Without a writable cache folder the hash is computed each time: slower, never wrong.
    with suppress(OSError):
        write_atomic(note, found.encode())
    return found


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
