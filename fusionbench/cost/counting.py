"""Floating-point operations, counted as they are dispatched; one multiply-add is two.

`FlopCounterMode` has no entry for the CPU's fused attention and would count it as nothing; the
entry is added here. `check` compares a count with the sum that anyone can do by hand, and every
profile starts with it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fusionbench.api.encoders import Encoder
from fusionbench.encoders.vit import ViT, ViTConfig

LARGEST_ERROR = 0.01
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# torch leaves these two without types.
_COUNT: Callable[..., int] = sdpa_flop_count
_COUNT_BACKWARD: Callable[..., int] = sdpa_backward_flop_count
_REFERENCE = ViTConfig(layers=2, dim=128, heads=4, patch=16, grid=8, size=128, mlp=512)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Operations of one call, and of the way back from the mean square of its output."""

    forward: int
    backward: int | None
    tokens: int
    """Along the output's second axis."""


def count(run: Callable[[], object]) -> int:
    """Operations of everything that `run` dispatches, backward passes included."""
    with _counter() as counter:
        run()
    return int(counter.get_total_flops())


def step(run: Callable[[], Float[Tensor, "batch token width"]], *, back: bool) -> Counted:
    """Both ways in one go: on no device, dispatching takes most of the time.

    The optimiser is left out: it has no product.
    """
    with _counter() as counter:
        with nullcontext() if back else torch.no_grad():
            output = run()
        forward = int(counter.get_total_flops())
        if back:
            torch.autograd.backward(output.float().square().mean())
        total = int(counter.get_total_flops())
    backward = total - forward if back else None
    return Counted(forward=forward, backward=backward, tokens=output.shape[1])


def analytic(encoder: Encoder, *, blocks: int) -> int:
    """Forward of one image by hand: patches, Linear layers, and the two products of attention.

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
    """Relative error of the count of a small ViT on this device.

    Raises ValueError beyond 1 %: then this release of PyTorch counts something else.
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
            f"{expected:.4g} by hand"
        )
    return error


def _counter() -> FlopCounterMode:
    mapping = {_ATTENTION: _attention, _ATTENTION_BACKWARD: _attention_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return _COUNT(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any) -> int:
    return _COUNT_BACKWARD(grad, query, key, value)
