"""Atomic files, the cache folder and remembered hashes; standard library only."""

import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from fusionbench.api.errors import UserError

log = logging.getLogger(__name__)
_CHUNK = 1 << 20
_SET_CACHE = "set FUSIONBENCH_CACHE to a folder that can be written"
_LARGEST = 1 << 28
"""Bytes of a stored text; what is larger is no file of ours."""
ANY_SIZE = 1 << 62
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags of a temporary file: it must not exist, nor be a link that somebody else has planted."""


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
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    handle = os.open(temporary, NEW_FILE, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
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


def regular(path: Path) -> FileIO:
    """A regular file, open and without a buffer, to be closed.

    Raises ValueError for a folder, and for a pipe, which would wait for ever; OSError if it cannot
    be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("not a regular file")
    return os.fdopen(handle, "rb", buffering=0)


def content(path: Path, largest: int = _LARGEST) -> bytes:
    """The bytes of a regular file, in half of the time of `read_bytes`.

    Raises ValueError for a file of more than `largest` bytes, and as `regular` does.
    """
    with regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > largest:
            raise ValueError(f"{size} bytes, the largest that is read is {largest}")
        return file.read()


def why(error: Exception) -> str:
    """The reason in an error of a file, without its path."""
    if isinstance(error, OSError):
        text = error.strerror or type(error).__name__
        return {errno.ENOENT: "missing, or a link to nothing", errno.ELOOP: "a link to itself"}.get(
            error.errno or 0, text
        )
    return str(error)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces. Raises as `regular` does."""
    digest = hashlib.sha256()
    with regular(path) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


# Files of the cache end with a hash over their name and their contents, so that neither flipped
# bytes nor a file under another name are believed.

_MARK = b"\n#sha256 "
_SEAL = len(_MARK) + 64 + 1


def sealed(path: Path, text: bytes) -> bytes:
    """The contents of a cache file: the bytes and the hash that `unsealed` compares."""
    return text + _seal(hashlib.sha256(path.name.encode() + b"\0" + text).hexdigest())


def unsealed(path: Path) -> bytes:
    """The bytes of a cache file without their hash.

    Raises ValueError if they are not what was written, OSError if the file cannot be read.
    """
    found = content(path, ANY_SIZE)
    text = found[:-_SEAL]
    if found[-_SEAL:] != sealed(path, text)[-_SEAL:]:
        raise ValueError("damaged, or of an earlier version")
    return text


def seal(path: Path, name: str) -> None:
    """Append the hash to a large file that will have that name. Raises OSError."""
    with path.open("rb+") as file:
        digest = _hashed(file, name, path.stat().st_size)
        file.seek(0, os.SEEK_END)
        file.write(_seal(digest))
        file.flush()
        os.fsync(file.fileno())


def is_sealed(path: Path) -> bool:
    """Whether a large file is what was written; computed again when its state differs.

    Raises OSError if it cannot be read.
    """
    return file_hash(path, compute=_sealed, kind="seal") == _SOUND


_SOUND, _DAMAGED = "sound", "damaged"


def _sealed(path: Path) -> str:
    size = path.stat().st_size - _SEAL
    if size < 0:
        return _DAMAGED
    with regular(path) as file:
        digest = _hashed(file, path.name, size)
        return _SOUND if file.read() == _seal(digest) else _DAMAGED


def _hashed(file: BinaryIO, name: str, size: int) -> str:
    digest = hashlib.sha256(name.encode() + b"\0")
    while size > 0 and (piece := file.read(min(size, _CHUNK))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()


def _seal(digest: str) -> bytes:
    return _MARK + digest.encode() + b"\n"


def drop_damaged(path: Path, reason: object) -> None:
    """Name a damaged file of the cache on stderr and remove it, so that it is made again."""
    log.warning("%s: %s; it is made again", path, reason)
    # A cache that cannot be written is read as far as it goes.
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def file_hash(path: Path, *, compute: Callable[[Path], str] = sha256_of, kind: str = "") -> str:
    """Hash of a file, computed again only when its inode, size or times differ.

    `kind` keeps the results of different `compute` functions apart.
    """
    state = _settled(path)
    key = "\n".join(map(str, (path.resolve(), *state, kind)))
    note = cache_dir("hashes", hashlib.sha256(key.encode()).hexdigest()[:32])
    if known := read_note(note):
        return known
    found = compute(path)
    if state_of(path.stat()) == state:
        write_note(note, found)
    return found


def read_note(note: Path) -> str:
    """A remembered text; empty if it is missing or not what was written."""
    try:
        return unsealed(note).decode()
    except (OSError, ValueError):
        return ""


def write_note(note: Path, text: str) -> None:
    """Remember a text. Without a writable cache it is computed each time: slower, never wrong."""
    with suppress(OSError):
        write_atomic(note, sealed(note, text.encode()))


_TICK_NS = 20_000_000
"""A file system gives two changes within a tick of its clock the same time."""


def _settled(path: Path) -> tuple[int, ...]:
    """The state of a file that has not changed within the last tick."""
    if 0 <= time.time_ns() - path.stat().st_ctime_ns < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
    return state_of(path.stat())


def state_of(status: os.stat_result) -> tuple[int, ...]:
    """Inode, size and both times: a program may set the first time, but not the second."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def free_name(folder: Path, stem: str) -> Path:
    """`<stem>.<n>.json` with the first n that is free."""
    number = 1
    while os.path.lexists(folder / f"{stem}.{number}.json"):
        number += 1
    return folder / f"{stem}.{number}.json"


def remove_older(folder: Path, pattern: str, seconds: float) -> None:
    """Delete temporary files of this pattern that killed runs left behind long ago."""
    for file in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - file.lstat().st_mtime > seconds:
                file.unlink()
