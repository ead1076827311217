"""Hidden states on disk: one file per (encoder, input size, image set, tap, dtype, precision).

Files are content-addressed and shared by methods, seeds and studies. One encoding pass fills all
missing taps of a plan; a cache that would outgrow its limit refuses instead of filling the disk.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusionbench.api.encoder import Encoder
from fusionbench.api.errors import UserError
from fusionbench.api.fusion import Tap
from fusionbench.feature_writer import written
from fusionbench.harness.products import by_onednn
from fusionbench.records.cell import canonical
from fusionbench.records.files import cache_dir
from fusionbench.row_file import RowFile

# Fixed: with another batch size the matrix products round differently.
_BATCH = 64
_FORMAT = 1
_GIB = 2**30
_CPU = torch.device("cpu")
_STALE_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What decides the contents of a feature file, the tap apart."""

    weights: str
    size: int
    images: str
    count: int
    precision: str
    dtype: str

    def path(self, tap: Tap) -> Path:
        """The file of one tap."""
        values = [_FORMAT, self.weights, self.size, self.images, self.count]
        text = canonical([*values, self.precision, self.dtype, list(tap)])
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        return cache_dir() / "features" / f"{name}.npy"


def missing_taps(key: FeatureKey, taps: Iterable[Tap]) -> list[Tap]:
    """The taps that no finished file holds, in a fixed order."""
    return sorted(tap for tap in set(taps) if not key.path(tap).exists())


def encode(
    encoder: Encoder,
    images: UInt8[np.ndarray, "image height width 3"],
    key: FeatureKey,
    taps: Sequence[Tap],
    *,
    limit_gib: float,
    device: torch.device = _CPU,
) -> None:
    """Fill the missing taps of an image set in one pass on the encoder's device.

    Raises UserError if they do not fit.
    """
    wanted = missing_taps(key, taps)
    if not wanted:
        return
    shape = (len(images), encoder.shape.tokens, encoder.shape.dim)
    _refuse_overflow(shape, key.dtype, len(wanted), limit_gib)
    with _pending(key, wanted, shape) as files, by_onednn(encoder), written(files, device) as write:
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(images[start : start + _BATCH]).to(device)
            states = _hidden_states(encoder, batch, key.precision)
            write(start, {tap: _averaged(states, tap, key.dtype) for tap in files})


def read(key: FeatureKey, tap: Tap) -> Float[Tensor, "image token dim"]:
    """One tap, memory-mapped (copy on write, so that nothing can change the file)."""
    return torch.from_numpy(np.load(key.path(tap), mmap_mode="c"))


def _hidden_states(
    encoder: Encoder, batch: UInt8[Tensor, "batch height width 3"], precision: str
) -> list[Float[Tensor, "batch token dim"]]:
    """`hs[0..L]`, and behind them `hs[L]` after the final norm (`StackShape.normed`)."""
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
        states = encoder.hidden_states(batch)
        with torch.no_grad():
            return [*states, encoder.norm(states[-1])]


def _averaged(
    states: Sequence[Float[Tensor, "batch token dim"]], tap: Tap, dtype: str
) -> Float[Tensor, "batch token dim"]:
    """On the encoder's device, in the type that is stored."""
    stored: torch.dtype = getattr(torch, dtype)
    if len(tap) == 1:
        return states[tap[0]].to(stored)
    return torch.stack([states[index].float() for index in tap]).mean(dim=0).to(stored)


@contextmanager
def _pending(
    key: FeatureKey, taps: Sequence[Tap], shape: tuple[int, int, int]
) -> Iterator[dict[Tap, RowFile]]:
    """Write under temporary names; only a complete pass gives the files their names."""
    folder = key.path(taps[0]).parent
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    # Named after the process: two runs that share the cache may encode the same images at once.
    partial = {tap: key.path(tap).with_suffix(f".{os.getpid()}.partial") for tap in taps}
    files: dict[Tap, RowFile] = {}
    try:
        for tap, path in partial.items():
            files[tap] = RowFile(path, dtype=key.dtype, shape=shape)
        yield files
        for tap, file in files.items():
            file.finish()
            partial[tap].replace(key.path(tap))
    finally:
        for file in files.values():
            file.close()
        for path in partial.values():
            path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Delete what killed runs left behind a day ago or longer."""
    for path in folder.glob("*.partial"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _refuse_overflow(shape: tuple[int, int, int], dtype: str, taps: int, limit_gib: float) -> None:
    need = taps * int(np.prod(shape)) * np.dtype(dtype).itemsize
    folder = cache_dir() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    used = sum(path.stat().st_size for path in folder.glob("*.npy"))
    if used + need > limit_gib * _GIB:
        raise UserError(
            f"the feature cache would grow to {(used + need) / _GIB:.2f} GiB, "
            f"the limit is {limit_gib:g} GiB",
            hint=f"raise --limit-cache, use float16 features, or empty {folder}",
        )
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{need / _GIB:.2f} GiB of features do not fit: {free / _GIB:.2f} GiB are free",
            hint="set FUSIONBENCH_CACHE to a larger disk",
        )
