"""Two runs that should agree, and how far they are apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import Outputs

TOLERANCE = 1e-4
"""Relative to the largest entry; float32 sums in another order differ by about 1e-6."""
ROUNDING = 1e-6
"""For the same sums done twice."""


def expect_equal(left: Outputs, right: Outputs, what: str, *, tolerance: float = TOLERANCE) -> None:
    """Raise CheckFailed unless all outputs agree; `what` says what makes them differ."""
    if left.keys() != right.keys():
        raise CheckFailed(f"{what}: gives {', '.join(left)} or {', '.join(right)}")
    for name, values in left.items():
        expect_close(values, right[name], f"{what}: {name}", tolerance=tolerance)


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


def differ(left: Outputs, right: Outputs, *, tolerance: float = TOLERANCE) -> bool:
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
