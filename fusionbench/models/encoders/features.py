"""Hidden states on disk: one file per (encoder, input size, image set, tap, dtype, precision).

Files are content-addressed and shared by methods, seeds and studies. One encoding pass fills all
missing taps of a plan; a cache that would outgrow its limit refuses instead of filling the disk.
"""

import hashlib
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.lib import format as npy
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import FatalError, UserError
from fusionbench.api.fusion import Tap
from fusionbench.records.cell import canonical
from fusionbench.records.files import (
    NEW_FILE,
    cache_dir,
    drop_damaged,
    is_sealed,
    remove_older,
    seal,
    why,
)

# A `.npy` file that takes its rows in any order and from any thread.
#
# Rows are written, not mapped: no page is read to be overwritten at once, and a full disk raises
# an error, where a mapping would end the process.


class RowFile:
    """A new file of one array; complete once every row has been written.

    Raises OSError where the system cannot make, fill or keep it.
    """

    def __init__(self, path: Path, *, dtype: str, shape: Sequence[int]) -> None:
        self._dtype = np.dtype(dtype)
        self._shape = tuple(shape[1:])
        self._row = int(np.prod(self._shape)) * self._dtype.itemsize
        self._path = path
        self._file = os.fdopen(os.open(path, NEW_FILE, 0o666), "wb", buffering=0)
        head = {
            "descr": npy.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": tuple(shape),
        }
        npy.write_array_header_1_0(self._file, head)
        self._rows_at = self._file.tell()

    def write(self, start: int, rows: np.ndarray) -> None:
        """Rows from `start` on, in the file's type and shape; TypeError for any others."""
        if rows.dtype != self._dtype or rows.shape[1:] != self._shape:
            raise TypeError(
                f"rows of {rows.dtype} {rows.shape[1:]}, but the file's are {self._dtype} "
                f"{self._shape}"
            )
        left = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        at = self._rows_at + start * self._row
        while left:
            done = os.pwrite(self._file.fileno(), left, at)
            left, at = left[done:], at + done

    def finish(self, name: str = "") -> None:
        """Whole on the disk, closed, and with its hash; `name`: its final one."""
        self._file.close()
        seal(self._path, name or self._path.name)

    def close(self) -> None:
        """As it is."""
        self._file.close()


# Hidden states are written to their files by threads, while the encoder makes the next ones.


Write = Callable[[int, Mapping[Tap, Float[Tensor, "batch token dim"]]], None]
"""Takes the first image's row, and the batch's states by tap in the type of their files."""
_WAITING = 4
"""Batches that may wait for the disk; beyond them the encoder waits too."""
_THREADS = 8
"""Beside a GPU: each copies memory to memory, and one alone is slower than a small encoder."""


@contextmanager
def written(files: Mapping[Tap, RowFile], device: torch.device) -> Iterator[Write]:
    """Within the block batches are written in any order; at its end all are.

    Raises UserError, in a later call or at the end, for states that their file's type cannot hold.
    """
    waiting: deque[list[Future[None]]] = deque()
    on_gpu = device.type == "cuda"
    count = min(_THREADS, len(os.sched_getaffinity(0))) if on_gpu else 1
    with ThreadPoolExecutor(max_workers=count, thread_name_prefix="features") as threads:

        def write(start: int, states: Mapping[Tap, Float[Tensor, "batch token dim"]]) -> None:
            if len(waiting) == _WAITING:
                _finish(waiting.popleft())
            there = {tap: _sent(values) for tap, values in states.items()}
            fit = {tap: _sent(_fits(values)) for tap, values in states.items()} if on_gpu else {}
            arrived = _mark() if on_gpu else None
            waiting.append(
                [
                    threads.submit(_store, files[tap], tap, start, values, fit.get(tap), arrived)
                    for tap, values in there.items()
                ]
            )

        yield write
        while waiting:
            _finish(waiting.popleft())


def _sent(values: Tensor) -> Tensor:
    """On its way into pinned memory, for which the encoder need not wait."""
    if values.device.type != "cuda":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _fits(values: Float[Tensor, "batch token dim"]) -> Bool[Tensor, ""]:
    return torch.isfinite(values).all()


def _mark() -> torch.cuda.Event:
    """Passed once all that was asked of the device until now is done."""
    event: Callable[[], torch.cuda.Event] = torch.cuda.Event
    mark = event()
    mark.record()
    return mark


def _store(  # noqa: PLR0913
    file: RowFile,
    tap: Tap,
    start: int,
    values: Float[Tensor, "batch token dim"],
    fits: Bool[Tensor, ""] | None,
    arrived: torch.cuda.Event | None,
) -> None:
    """`fits`: seen on a GPU, which takes no time for it; else it is seen here."""
    if arrived is not None:
        arrived.synchronize()
    if not bool(_fits(values) if fits is None else fits):
        raise UserError(
            f"hidden states {list(tap)} do not fit into {str(values.dtype).split('.')[1]}",
            hint="set budget.feature_dtype to float32",
        )
    file.write(start, values.numpy())


def _finish(batch: list[Future[None]]) -> None:
    for each in batch:
        each.result()


# Fixed: with another batch size the matrix products round differently.
_BATCH = 64
_FORMAT = 1
_GIB = 2**30
_UNITS = {"GiB": _GIB, "MiB": 2**20, "KiB": 2**10}
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
    code: str = ""
    """Hash of the file of a plug-in encoder: its code decides the states as its weights do."""

    def path(self, tap: Tap) -> Path:
        """The file of one tap."""
        values = [_FORMAT, self.weights, self.size, self.images, self.count]
        values += [self.code] if self.code else []
        text = canonical([*values, self.precision, self.dtype, list(tap)])
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        return cache_dir() / "features" / f"{name}.npy"


def missing_taps(key: FeatureKey, taps: Iterable[Tap]) -> list[Tap]:
    """The taps that no sound file holds, in a fixed order; a damaged file is removed."""
    return sorted(tap for tap in set(taps) if not _is_there(key.path(tap)))


def _is_there(path: Path) -> bool:
    if not os.path.lexists(path):
        return False
    try:
        if is_sealed(path):
            return True
        reason = "damaged, or of an earlier version"
    except (OSError, ValueError) as error:
        reason = why(error)
    drop_damaged(path, reason)
    return False


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
    for _ in encoding(encoder, images, key, taps, limit_gib=limit_gib, device=device):
        pass


def encoding(  # noqa: PLR0913  (as `encode`)
    encoder: Encoder,
    images: UInt8[np.ndarray, "image height width 3"],
    key: FeatureKey,
    taps: Sequence[Tap],
    *,
    limit_gib: float,
    device: torch.device = _CPU,
) -> Iterator[int]:
    """As `encode`, batch by batch: the number of images so far. Its end fills the files."""
    wanted = missing_taps(key, taps)
    if not wanted:
        return
    shape = (len(images), encoder.shape.tokens, encoder.shape.dim)
    _refuse_overflow(shape, key.dtype, len(wanted), limit_gib)
    with _pending(key, wanted, shape) as files, written(files, device) as write:
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(images[start : start + _BATCH]).to(device)
            states = _hidden_states(encoder, batch, key.precision, wanted)
            write(start, {tap: _averaged(states, tap, key.dtype) for tap in files})
            yield min(start + _BATCH, len(images))


def read(key: FeatureKey, tap: Tap) -> Float[Tensor, "image token dim"]:
    """One tap, memory-mapped (copy on write, so that nothing can change the file).

    Raises OSError for a file that was removed or damaged since it was encoded.
    """
    if missing_taps(key, [tap]):
        raise OSError(f"{key.path(tap)} is damaged or missing: run the study again to make it anew")
    return torch.from_numpy(np.load(key.path(tap), mmap_mode="c"))


def _hidden_states(
    encoder: Encoder,
    batch: UInt8[Tensor, "batch height width 3"],
    precision: str,
    taps: Iterable[Tap],
) -> dict[int, Float[Tensor, "batch token dim"]]:
    """`hs[0..L]`, and those that the taps want after the final norm (`StackShape.normed_layer`)."""
    wanted = {index for tap in taps for index in tap}
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bf16"):
        states = encoder.hidden_states(batch)
        found = dict(enumerate(states))
        with torch.no_grad():
            for index in sorted(wanted - found.keys()):
                layer, _ = encoder.shape.source(index)
                found[index] = encoder.norm(states[layer])
    return found


def _averaged(
    states: Mapping[int, Float[Tensor, "batch token dim"]], tap: Tap, dtype: str
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
    own = f".{os.getpid()}-{secrets.token_hex(4)}.partial"
    partial = {tap: key.path(tap).with_suffix(own) for tap in taps}
    files: dict[Tap, RowFile] = {}
    try:
        for tap, path in partial.items():
            files[tap] = RowFile(path, dtype=key.dtype, shape=shape)
        yield files
        for tap, file in files.items():
            file.finish(key.path(tap).name)
            partial[tap].replace(key.path(tap))
    finally:
        for file in files.values():
            file.close()
        for path in partial.values():
            path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Delete what killed runs left behind in the cache a day ago or longer."""
    remove_older(folder, "*.partial", _STALE_SECONDS)
    for name in ("bundles", "data", "hashes", "images"):
        remove_older(cache_dir(name), ".*.tmp", _STALE_SECONDS)


def _refuse_overflow(shape: tuple[int, int, int], dtype: str, taps: int, limit_gib: float) -> None:
    need = taps * int(np.prod(shape)) * np.dtype(dtype).itemsize
    folder = cache_dir() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    used = sum(path.stat().st_size for path in folder.glob("*.npy"))
    limit = limit_gib * _GIB
    if used + need > limit:
        raise FatalError(
            f"the feature cache would grow to {_size(used + need)}, the limit is {_size(limit)}",
            hint=f"raise --limit-cache, use float16 features, or empty {folder}",
        )
    free = shutil.disk_usage(folder).free
    if need > free:
        raise FatalError(
            f"{_size(need)} of features do not fit: {_size(free)} are free in {cache_dir()}",
            hint="set FUSIONBENCH_CACHE to a larger disk",
        )


def _size(count: float) -> str:
    unit = next((name for name in ("GiB", "MiB") if count >= _UNITS[name]), "KiB")
    return f"{count / _UNITS[unit]:.2f} {unit}"
