"""The optimisers of a training: AdamW alone, or Muon for matrices and AdamW for the rest.

A pass stacks the weights of its runs along a first axis. Muon takes the last two axes as the
matrix, so each run gets the update that it gets alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.records.cell import Budget

MUON = "muon"
_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def orthogonalised(
    matrix: Float[Tensor, "*run rows columns"],
) -> Float[Tensor, "*run rows columns"]:
    """The matrix with all singular values near 1 (between 0.7 and 1.2), by Newton-Schulz steps.

    X <- a X + (b A + c A^2) X with A = X X^T, from X divided by its Frobenius norm (Jordan et al.
    2024, "Muon"). In float32: in bfloat16, as `torch.optim.Muon` has it, rounding turns the small
    singular directions, and runs of a pass would leave the runs alone.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = (matrix if wide else matrix.mT).float()
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x if wide else x.mT).to(matrix.dtype)


class Muon:
    """Muon with Nesterov momentum 0.95 on the last two axes of each parameter.

    m <- 0.95 m + 0.05 g;  W <- (1 - lr wd) W - lr sqrt(rows / columns) O(0.95 m + 0.05 g).
    The factor sqrt(rows / columns) (Bernstein 2025, "Deriving Muon"; `spectral_unclamped` in
    PyTorch) makes the change of a layer's output independent of its width: a method that repeats
    its channels takes the steps of one that does not.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.param_groups = list(groups)
        """Each with `params`, `lr` and `weight_decay`."""
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])

    def _move(self, weight: Tensor, lr: float, decay: float) -> None:
        gradient, state = weight.grad, self.state.setdefault(weight, {})
        if gradient is None:
            return
        if not state:
            state["exp_avg"] = torch.zeros_like(gradient)
        mean = state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
        update = orthogonalised(gradient.lerp(mean, _MOMENTUM))
        rows, columns = weight.shape[-2:]
        weight.mul_(1 - lr * decay).add_(update, alpha=-lr * math.sqrt(rows / columns))


class Optimisers:
    """All optimisers of a training as one.

    `axes`: leading axes of every parameter that belong to the runs of a pass. Matrices have the
    learning rate `lr`. Parameters with at most one dimension of their own (biases, norms, gates,
    mixing weights) have `vector_lr` and no weight decay. With Muon, parameters of three and more
    dimensions are left to AdamW at `vector_lr`.
    """

    def __init__(
        self, parameters: Sequence[Tensor], budget: Budget, lr: float, *, axes: int = 0
    ) -> None:
        other = budget.vector_lr or lr
        own = [(p, p.ndim - axes) for p in parameters]
        free = [p for p, dims in own if dims <= 1]
        matrices = [p for p, dims in own if dims == 2]
        larger = [p for p, dims in own if dims > 2]
        muon = budget.optimiser == MUON
        decayed = larger if muon else [p for p, dims in own if dims > 1]
        groups = [
            _group(decayed, other if muon else lr, budget.weight_decay),
            _group(free, other, 0.0),
        ]
        filled = [group for group in groups if group["params"]]
        self.parts: list[torch.optim.AdamW | Muon] = []
        if filled:
            self.parts.append(torch.optim.AdamW(filled, lr=lr, fused=True))
        if muon and matrices:
            self.parts.append(Muon([_group(matrices, lr, budget.weight_decay)]))

    def step(self, share: float) -> None:
        """Move all parameters at this share of their peak learning rates."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * share
            part.step()

    def moment(self, parameter: Tensor) -> Tensor | None:
        """The parameter's running mean of gradients; None before its first gradient."""
        found = [part.state[parameter] for part in self.parts if parameter in part.state]
        return found[0].get("exp_avg") if found else None


def _group(params: Sequence[Tensor], peak: float, decay: float) -> dict[str, Any]:
    """Parameters with one learning rate; `peak` is the rate at the top of the schedule."""
    return {"params": list(params), "weight_decay": decay, "lr": peak, "peak": peak}
