"""Time and memory of two things that are measured in turn.

Clocks drift and neighbours come and go: so block follows block, the method's and the bare
encoder's, and what a method costs is the median of the differences of neighbouring blocks.
"""

import statistics
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import set_torch_threads, timer

from fusionbench.records.cost import Spread

# What tensors hold at most during a call, on a device whose allocator does not tell.


def most_held(run: Callable[[], object]) -> int:
    """Bytes of all storages made during the call that are alive at once, at the most.

    What a kernel takes for itself while it works is not seen.
    """
    with _Held() as held:
        kept = run()
    del kept
    return held.most


class _Held(TorchDispatchMode):
    """Follows each storage that an operation makes until it is freed."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._now = self.most = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(storage) for storage in _storages((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            # A view, or what was written in place, holds nothing more.
            if id(storage) not in given and id(storage) not in self._alive:
                self._follow(storage)
        return found

    def _follow(self, storage: torch.UntypedStorage) -> None:
        name, size = id(storage), storage.nbytes()

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            self._now -= size
            del self._alive[name]

        self._alive[name] = weakref.ref(storage, freed)
        self._now += size
        self.most = max(self.most, self._now)


def _storages(tree: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


BLOCKS = 30
_BLOCK_SECONDS = {"cuda": 0.05, "cpu": 0.2}
"""Long enough for a clock's own error not to count; a GPU's events are exact to a microsecond."""
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds a call."""

    method: Spread
    bare: Spread
    difference: Spread


def interleaved(
    method: Callable[[], object],
    bare: Callable[[], object],
    *,
    device: torch.device,
    blocks: int = BLOCKS,
    threads: int = 1,
) -> Times:
    """Time both in turn; calls a block are as many as fill `_BLOCK_SECONDS`."""
    for _ in range(_WARM_UP):
        method()
        bare()
    calls = [_calls(run, device, threads) for run in (method, bare)]
    found: list[tuple[float, float]] = []
    for block in range(blocks):
        # Alternating which goes first, so that neither always follows the warmer chip.
        order = (0, 1) if block % 2 == 0 else (1, 0)
        pair = {which: _block((method, bare)[which], calls[which], device, threads)
                for which in order}  # fmt: skip
        found.append((pair[0], pair[1]))
    return Times(
        method=spread([one for one, _ in found]),
        bare=spread([other for _, other in found]),
        difference=spread([one - other for one, other in found]),
    )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    if len(values) < 2:
        raise ValueError(f"quartiles need at least two blocks, got {len(values)}")
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, q1=q1, q3=q3, blocks=len(values))


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most that was allocated during a call above what was before.

    On a CPU what tensors hold of it (`held.py`), for a call that is not compiled.
    """
    if device.type != "cuda":
        return most_held(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - start


def _calls(run: Callable[[], object], device: torch.device, threads: int) -> int:
    wanted = _BLOCK_SECONDS["cuda" if device.type == "cuda" else "cpu"]
    return max(1, round(wanted * 1000 / _block(run, 1, device, threads)))


def _block(run: Callable[[], object], calls: int, device: torch.device, threads: int) -> float:
    """Milliseconds a call, over one block."""
    if device.type == "cuda":
        event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        start, end = (event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls
    # Not `Timer.timeit`, which runs twice before each block: here all is warm already.
    with set_torch_threads(threads):
        started = timer()
        for _ in range(calls):
            run()
        return 1000 * (timer() - started) / calls
