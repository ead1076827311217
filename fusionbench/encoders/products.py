"""Linear layers by oneDNN, wherever a cell trains or is scored on a CPU in float32.

PyTorch multiplies float32 matrices by MKL, which keeps to AVX2 on processors that are not Intel's.
oneDNN, which PyTorch brings along for convolutions, uses AVX-512 on all of them: at the sizes of
the quick study twice as fast there. Both round differently in the last bits only
(`tests/test_products.py`), so this is no part of a cell's identity.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Multiplications below which the call costs more than it saves; a product over rows reads both
# factors against their order, and oneDNN copies them first.
_WORTH_IT, _WORTH_IT_OVER_ROWS = 2_000_000, 10_000_000


def available() -> bool:
    """Whether this PyTorch was built with oneDNN's linear layer."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


@contextmanager
def by_onednn(*modules: nn.Module | None) -> Iterator[None]:
    """Within the block every plain `nn.Linear` of these modules is computed by oneDNN.

    Nothing changes where PyTorch was built without it.
    """
    layers = _plain_layers(modules) if available() else []
    for layer in layers:
        _become(layer, _Linear)
    try:
        yield
    finally:
        for layer in layers:
            _become(layer, nn.Linear)


class _Linear(nn.Linear):
    """Parameters, names and start as for its parent."""

    def forward(self, input: Float[Tensor, "*batch inner"]) -> Float[Tensor, "*batch outer"]:  # noqa: A002
        """The same map, by oneDNN where that is faster."""
        if not _suits(input, self.weight):
            return F.linear(input, self.weight, self.bias)
        product: Tensor = _Product.apply(input, self.weight, self.bias)
        return product


class _Product(torch.autograd.Function):
    """x W^T + b and its gradients, all by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A frozen layer asks for no gradient of its weight: then nothing keeps its input.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = above.flatten(0, -2)
        return (
            _multiply(above, weight.T) if ctx.needs_input_grad[0] else None,
            _over_rows(rows, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None,
            rows.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )


def _over_rows(
    above: Float[Tensor, "row outer"], seen: Float[Tensor, "row inner"]
) -> Float[Tensor, "outer inner"]:
    if above.numel() * seen.shape[1] < _WORTH_IT_OVER_ROWS:
        return above.T @ seen
    return _multiply(seen.T, above.T).T


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Large, float32, and neither under autocast, in a transform of `torch.func` nor compiled."""
    return (
        x.numel() * weight.shape[0] >= _WORTH_IT
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _plain_layers(modules: tuple[nn.Module | None, ...]) -> list[nn.Linear]:
    # Its subclasses may compute something else.
    return [
        layer
        for module in modules
        if module is not None
        for layer in module.modules()
        if type(layer) is nn.Linear
    ]


def _become(layer: nn.Module, kind: type[nn.Module]) -> None:
    object.__setattr__(layer, "__class__", kind)
