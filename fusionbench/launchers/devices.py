"""The devices of this machine that workers share: one group of workers for each GPU. No torch."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fusionbench.records.cell import RunOptions

_CPU_WORKERS, _GPU_WORKERS, _GPU_WORKERS_OF_PASSES = 8, 12, 4
_DRIVER, _GPU = Path("/dev/nvidiactl"), re.compile(r"nvidia\d+")
_CUDA = "cuda"


def gpu_count() -> int:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else those of the driver.

    The process that starts the workers does not load torch, so it looks for the driver's devices.
    """
    if not _DRIVER.exists():
        return 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        # CUDA ignores everything behind the first number that is none.
        names = [name.strip() for name in named.split(",")]
        return next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
    return sum(bool(_GPU.fullmatch(path.name)) for path in _DRIVER.parent.glob("nvidia*")) or 1


def uses_gpu(options: RunOptions) -> bool:
    """Whether workers will use a GPU."""
    return options.device.startswith(_CUDA) or (options.device == "auto" and gpu_count() > 0)


def worker_devices(options: RunOptions) -> tuple[str, ...]:
    """The device of each group of workers: every GPU, unless one device is named.

    A training on several processes places them itself, so its one worker has no device of its own.
    """
    if options.device not in ("auto", _CUDA) or options.processes > 1:
        return (options.device,)
    count = gpu_count()
    return tuple(f"{_CUDA}:{index}" for index in range(count)) if count > 1 else (options.device,)


def worker_count(options: RunOptions, *, seeds_per_pass: int = 1) -> int:
    """The number asked for; else one per core, at most 8, and at most 12 or 4 that share a GPU.

    Small cells are bound by the processor that launches their kernels, so many of them share a GPU
    well; a pass of seeds fills it, and much of its memory, with a few. With several GPUs each has
    a worker at least.
    """
    if options.workers:
        return options.workers
    devices, cores = worker_devices(options), len(os.sched_getaffinity(0))
    most = _CPU_WORKERS
    if uses_gpu(options):
        most = _GPU_WORKERS if seeds_per_pass == 1 else _GPU_WORKERS_OF_PASSES
    return max(len(devices), min(most * len(devices), cores))


def least_used(devices: Sequence[str], used: Iterable[str]) -> str:
    """The device for the next worker: the first of those with the fewest workers."""
    counts = Counter(used)
    return min(devices, key=lambda device: counts[device])
