"""Hidden states are written to their files by a thread, while the encoder makes the next ones."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fusionbench.errors import UserError
from fusionbench.fusion import Tap

Write = Callable[[int, Mapping[Tap, Float[Tensor, "batch token dim"]]], None]
"""Takes the first image's row, and the batch's states by tap in the type of their files."""
_WAITING = 2
"""Batches that may wait for the disk; beyond them the encoder waits too."""


@contextmanager
def written(files: Mapping[Tap, np.memmap]) -> Iterator[Write]:
    """Within the block batches are written in the order given; at its end all are.

    Raises UserError, in a later call or at the end, for states that their file's type cannot hold.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="features") as thread:

        def write(start: int, states: Mapping[Tap, Float[Tensor, "batch token dim"]]) -> None:
            if len(waiting) == _WAITING:
                waiting.popleft().result()
            waiting.append(thread.submit(_store, files, start, states))

        yield write
        while waiting:
            waiting.popleft().result()


def _store(
    files: Mapping[Tap, np.memmap], start: int, states: Mapping[Tap, Float[Tensor, "b token dim"]]
) -> None:
    for tap, values in states.items():
        # On a GPU this waits for the copy: in this thread, nobody else does.
        stored = values.cpu().numpy()
        if not np.isfinite(stored).all():
            raise UserError(
                f"hidden states {list(tap)} do not fit into {stored.dtype}",
                hint="set budget.feature_dtype to float32",
            )
        files[tap][start : start + len(stored)] = stored
