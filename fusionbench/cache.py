"""The cache folder: files written whole or not at all, and hashes that are computed once.

Standard library only: planning reads it without torch.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
