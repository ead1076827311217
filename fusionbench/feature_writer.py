"""Hidden states are written to their files by threads, while the encoder makes the next ones."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusionbench.api.errors import UserError
from fusionbench.api.fusion import Tap
from fusionbench.row_file import RowFile

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
