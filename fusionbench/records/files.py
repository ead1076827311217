"""Atomic files, the cache folder and remembered hashes; standard library only."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fusionbench.api.errors import UserError

_CHUNK = 1 << 20
_SET_CACHE = "set FUSIONBENCH_CACHE to a folder that can be written"


def expanded(text: str) -> Path:
    """The path with the home folder for `~`; unchanged where the account has none."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def cache_dir(*parts: str) -> Path:
    """`$FUSIONBENCH_CACHE`, or `~/.cache/fusionbench`, and a path inside it.

    The cache folder is made, for its owner alone, where that is possible: other users' files must
    not enter it. One that exists keeps its mode, so that it can be shared on purpose. Raises
    UserError where there is no home folder either.
    """
    root = expanded(os.environ.get("FUSIONBENCH_CACHE") or "~/.cache/fusionbench")
    if root.parts[:1] == ("~",):
        raise UserError("there is no home folder for the cache", _SET_CACHE)
    if not root.exists():
        # A folder that cannot be made is an error for those who write, not for those who look.
        with suppress(OSError):
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)
    return root.joinpath(*parts)


def require_cache() -> None:
    """Raise UserError if the cache folder is missing or empty and cannot be written.

    A filled one may be read-only.
    """
    root = cache_dir()
    if not root.is_dir():
        raise UserError(f"the cache folder {root} cannot be made", _SET_CACHE)
    if not os.access(root, os.W_OK | os.X_OK) and not any(root.iterdir()):
        raise UserError(f"no permission to write to the cache folder {root}", _SET_CACHE)


def write_atomic(path: Path, content: bytes, *, replace: bool = True) -> bool:
    """Write a file so that other processes see all of it or nothing; makes its folder.

    Returns False, and keeps the file that exists, if `replace` is False and there is one. The bytes
    are on disk before the name is, so that a kill or a full disk leaves no truncated file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if replace:
            temporary.replace(path)
            return True
        _publish(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name; FileExistsError if the name is taken."""
    try:
        # A hard link fails where a rename would overwrite.
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS or path.exists():
            raise
        # Some network and FAT file systems have no links: two runs may then both write it, with
        # equal bytes.
        temporary.rename(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def content(path: Path) -> bytes:
    """The bytes of a small file, in half of the time of `read_bytes`."""
    with path.open("rb", buffering=0) as file:
        return file.read()


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


def free_name(folder: Path, stem: str) -> Path:
    """`<stem>.<n>.json` with the first n that is free."""
    number = 1
    while (folder / f"{stem}.{number}.json").exists():
        number += 1
    return folder / f"{stem}.{number}.json"
