"""Count floating-point operations; one multiply-add is two.

`FlopCounterMode` counts the CPU's fused attention as zero, so its formula is added here. `check`
compares the counter with an analytic count; every profile starts with it.
"""

from collections.abc import Callable
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
