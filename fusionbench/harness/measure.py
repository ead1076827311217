"""Cost of a method: floating-point operations, latency and peak memory.

`FlopCounterMode` counts the CPU's fused attention as zero, so its formula is added here. `check`
compares the counter with an analytic count; every profile starts with it.

Clock rates and other processes change during a measurement, so blocks of the two alternate and the
cost of the method is the median of the differences of neighbouring blocks.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.benchmark import set_torch_threads, timer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fusionbench.api.encoders import Encoder
from fusionbench.models.encoders.vit import ViT, ViTConfig
from fusionbench.records.cost import Spread

LARGEST_ERROR = 0.01
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# torch has no types for these two.
_COUNT: Callable[..., int] = sdpa_flop_count
_COUNT_BACKWARD: Callable[..., int] = sdpa_backward_flop_count
_REFERENCE = ViTConfig(layers=2, dim=128, heads=4, patch=16, grid=8, size=128, mlp=512)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Operations of one forward call, and of the backward pass of its output's mean square."""

    forward: int
    backward: int | None
    tokens: int
    """Size of the output's second axis."""


def count(run: Callable[[], object]) -> int:
    """Operations of all that `run` dispatches, including backward passes."""
    with _counter() as counter:
        run()
    return int(counter.get_total_flops())


def step(run: Callable[[], Float[Tensor, "batch token width"]], *, back: bool) -> Counted:
    """Operations of forward and, with `back`, backward; the optimiser has no product."""
    with _counter() as counter:
        # With gradients in both modes: without them the counter fails where a parameter itself is
        # the input of a module. The forward pass has the same operations.
        output = run()
        forward = int(counter.get_total_flops())
        if back:
            torch.autograd.backward(output.float().square().mean())
        total = int(counter.get_total_flops())
    backward = total - forward if back else None
    return Counted(forward=forward, backward=backward, tokens=output.shape[1])


def analytic(encoder: Encoder, *, blocks: int) -> int:
    """Analytic forward count of one image: patches, Linear layers, the two products of attention.

    4 T^2 D for the attention of a block on T tokens, 2 T i o for a Linear from i to o.
    """
    tokens, dim = encoder.shape.tokens, encoder.shape.dim
    total = 0
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            patches = encoder.shape.grid[0] * encoder.shape.grid[1]
            total += 2 * patches * module.weight.numel()
        elif isinstance(module, nn.Linear):
            total += 2 * tokens * module.weight.numel() * blocks // encoder.shape.layers
    return total + blocks * 4 * tokens**2 * dim


def check(device: torch.device) -> float:
    """Relative error of the counter on a small ViT.

    Raises ValueError above 1 %: this release of PyTorch counts differently.
    """
    with device:
        encoder = ViT(_REFERENCE)
        images = torch.zeros(2, 128, 128, 3, dtype=torch.uint8)
    found = count(lambda: encoder.hidden_states(images)) / 2
    expected = analytic(encoder, blocks=_REFERENCE.layers)
    error = abs(found / expected - 1)
    if error > LARGEST_ERROR:
        raise ValueError(
            f"the operation counter is off by {error:.1%} on {device}: {found:.4g} counted, "
            f"{expected:.4g} expected"
        )
    return error


def _counter() -> FlopCounterMode:
    mapping = {_ATTENTION: _attention, _ATTENTION_BACKWARD: _attention_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return _COUNT(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any) -> int:
    return _COUNT_BACKWARD(grad, query, key, value)


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
