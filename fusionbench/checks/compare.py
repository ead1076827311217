"""Two runs that should agree, and how far they are apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import outputs
from fusionbench.types import Fused

TOLERANCE = 1e-4
"""Relative to the largest entry; float32 sums in another order differ by about 1e-6."""
ROUNDING = 1e-6
"""For the same sums done twice."""


def expect_equal(left: Fused, right: Fused, what: str, *, tolerance: float = TOLERANCE) -> None:
    """Raise CheckFailed unless all outputs agree; `what` says what makes them differ."""
    pairs = dict(outputs(left)), dict(outputs(right))
    if pairs[0].keys() != pairs[1].keys():
        raise CheckFailed(f"{what}: gives {', '.join(pairs[0])} or {', '.join(pairs[1])}")
    for name, values in pairs[0].items():
        expect_close(values, pairs[1][name], f"{what}: {name}", tolerance=tolerance)


def expect_close(
    left: Float[Tensor, "*shape"],
    right: Float[Tensor, "*shape"],
    what: str,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise CheckFailed unless two tensors agree."""
    if left.shape != right.shape:
        raise CheckFailed(f"{what}: {list(left.shape)} against {list(right.shape)}")
    apart = distance(left, right)
    if not apart <= tolerance:
        raise CheckFailed(f"{what}: differ by {apart:.2g} of the largest value")


def differ(left: Fused, right: Fused, *, tolerance: float = TOLERANCE) -> bool:
    """Whether any output differs."""
    try:
        expect_equal(left, right, "", tolerance=tolerance)
    except CheckFailed:
        return True
    return False


def distance(left: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> float:
    """Largest difference, relative to the largest entry; NaN where either has one."""
    if not left.numel():
        return 0.0
    left, right = left.detach().double(), right.detach().double()
    scale = torch.maximum(left.abs().amax(), right.abs().amax()).clamp_min(1e-12)
    return float((left - right).abs().amax() / scale)
