"""What a run may use: devices, workers and time. No torch.

A limit ends what hangs, so it is generous: a machine that shares its cores with others is slow, and
a cell that is ended for nothing is lost.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from fusionbench.launchers.jobs import EncodeJob, Job, TapsJob, company_of
from fusionbench.models.readers.load import WORDS
from fusionbench.records.cell import RunOptions
from fusionbench.study.plan import Cell, ModelJob

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


def worker_count(
    options: RunOptions, *, seeds_per_pass: int = 1, trainings: Iterable[Cell] = ()
) -> int:
    """The number asked for; else one per core, at most 8, and at most 12 or 4 that share a GPU.

    Small cells are bound by the processor that launches their kernels, so many of them share a GPU
    well; a pass of seeds fills it, and much of its memory, with a few. With several GPUs each has
    a worker at least. A language model with weights of its own, and a training on several
    processes, has its device for itself; `trainings`: a cell of each training of the track `vlm`.
    """
    if options.workers:
        return options.workers
    devices, cores = worker_devices(options), len(os.sched_getaffinity(0))
    models = {cell.spec.training.language for cell in trainings if cell.spec.training is not None}
    if models and (options.processes > 1 or (uses_gpu(options) and models != {WORDS})):
        return len(devices)
    most = _CPU_WORKERS
    if uses_gpu(options):
        most = _GPU_WORKERS if seeds_per_pass == 1 else _GPU_WORKERS_OF_PASSES
    return max(len(devices), min(most * len(devices), cores))


def least_used(devices: Sequence[str], used: Iterable[str]) -> str:
    """The device for the next worker: the first of those with the fewest workers."""
    counts = Counter(used)
    return min(devices, key=lambda device: counts[device])


_FACTOR = 50.0
"""The limit of a cell over the time that is expected of it."""
_LEAST_SECONDS = 1800.0
_LEAST_SECONDS_OF_MODELS = 24 * 3600.0
"""A model of the track `vlm` is trained for hours, and no count of operations says how many."""
CPU_RATE, GPU_RATE = 2.5e10, 2e12
"""Operations per second of one worker: what a small transformer reaches on one core of a server,
and on a data-centre GPU that such cells do not fill."""

_CELL_SECONDS, _ITEM_SECONDS = 0.1, 4.5e-4
_USUAL_ITEMS = (2048, 128, 448)


class TimeLimits:
    """The limit of time of each job in a run."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options

    def deadline(self, job: Job, begun: Sequence[Cell] = ()) -> float | None:
        """When (`time.monotonic`) the job, or the cells that it has begun, must have ended.

        None for what may wait for another run, and for the encoding by built-in code.
        """
        seconds = self.seconds(job, begun)
        return None if seconds is None else time.monotonic() + seconds

    def seconds(self, job: Job, begun: Sequence[Cell] = ()) -> float | None:
        """The limit itself."""
        asked = self.options.cell_seconds
        if isinstance(job, TapsJob):
            return asked or _LEAST_SECONDS
        if isinstance(job, EncodeJob):
            # A task that another run encodes is waited for.
            return (asked or _LEAST_SECONDS_OF_MODELS) if company_of(job) else None
        if not begun:
            return None
        if asked:
            return asked * len(begun)
        if isinstance(job, ModelJob):
            return _LEAST_SECONDS_OF_MODELS
        return max(_LEAST_SECONDS, _FACTOR * sum(map(self._expected, begun)))

    def words(self, job: Job, begun: Sequence[Cell]) -> str:
        """The limit for people."""
        seconds = self.seconds(job, begun) or 0.0
        return f"{seconds:.0f} s, its limit of time (--limit-cell SECONDS changes it)"

    def _expected(self, cell: Cell) -> float:
        return operations(cell) * examples(cell, tuned=True) / rate(self.options)


def rate(options: RunOptions) -> float:
    """Operations per second of a worker."""
    return GPU_RATE if options.device.startswith("cuda") else CPU_RATE


def examples(cell: Cell, *, tuned: bool) -> int:
    """Examples that pass in training; with `tuned` those of the runs that choose rate and layer."""
    budget = cell.spec.budget
    layers = cell.encoder.layers if cell.chosen.card.tries else 0
    tuning = len(budget.lrs) * budget.tuning_seeds * max(layers, 1)
    tuning = tuning if len(budget.lrs) > 1 or layers else 0
    runs = 1 + (tuning if tuned else 0)
    return runs * budget.steps * budget.batch


def work(cell: Cell) -> float:
    """Seconds that a cell is expected to take on one core; the same for all of the track `vlm`."""
    if cell.spec.training is not None:
        return 1.0
    trained = examples(cell, tuned=cell.spec.seed == 0) * operations(cell) / CPU_RATE
    return trained + scoring_seconds(cell, CPU_RATE)


def operations(cell: Cell) -> float:
    """Per training example: the reader's products, and the encoder forward and back if inside."""
    card, width = cell.encoder, cell.spec.budget.reader_width
    reader = 3 * 2 * card.tokens * width * (card.dim + 4 * width)
    return reader + inside_operations(cell)


def inside_operations(cell: Cell) -> float:
    """Of one image forward and back through the encoder; 0 if the method does not run inside."""
    return 2.5 * _encoding(cell) if cell.chosen.card.in_encoder else 0.0


def _encoding(cell: Cell) -> float:
    """Operations of the encoder, forward, for one image."""
    card = cell.encoder
    block = 2 * card.tokens * 12 * card.dim**2 + 4 * card.tokens**2 * card.dim
    return card.layers * block


def scoring_seconds(cell: Cell, rate: float) -> float:
    """What a cell takes besides its training steps: reading, fitting and scoring its examples.

    `rate`: operations per second. Each example passes the encoder once more if the method is
    inside; the rest is what the 4,980 cells of `results/quick` took on one core. A split in full
    counts as that of `quick`.
    """
    budget = cell.spec.budget
    items = sum(
        given or usual
        for given, usual in zip(
            (budget.train_items, budget.val_items, budget.test_items), _USUAL_ITEMS, strict=True
        )
    )
    inside = _encoding(cell) / rate if cell.chosen.card.in_encoder else 0.0
    return _CELL_SECONDS + items * (_ITEM_SECONDS + inside)
