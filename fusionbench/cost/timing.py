"""Latency and peak memory of a method and of the bare encoder, measured in alternating blocks.

Clock rates and other processes change during a measurement, so blocks of the two alternate and the
cost of the method is the median of the differences of neighbouring blocks.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.benchmark import set_torch_threads, timer

from fusionbench.records.cost import Spread

BLOCKS = 30
_BLOCK_SECONDS = {"cuda": 0.05, "cpu": 0.2}
"""Long against the resolution of the clock; CUDA events resolve a microsecond."""
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds per call."""

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
    """Time both in alternating blocks of about `_BLOCK_SECONDS`."""
    for _ in range(_WARM_UP):
        method()
        bare()
    calls = [_calls(run, device, threads) for run in (method, bare)]
    found: list[tuple[float, float]] = []
    for block in range(blocks):
        # The order alternates, so that neither always runs on the warmer chip.
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
    """Peak bytes allocated during a call, minus those allocated before it; None without CUDA.

    Only the CUDA allocator records its peak.
    """
    if device.type != "cuda":
        return None
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
    """Milliseconds per call in one block."""
    if device.type == "cuda":
        event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        start, end = (event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls
    # Not `Timer.timeit`, which warms up before each block.
    with set_torch_threads(threads):
        started = timer()
        for _ in range(calls):
            run()
        return 1000 * (timer() - started) / calls
