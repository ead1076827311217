"""Whether runs do together what each does alone: losses and gradients of the first step."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from fusionbench.harness.batched_model import Stack
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model
from fusionbench.harness.train import autocast

# At the start all runs differ from the loop by rounding alone; a method that keeps more than
# tensors from its seed, or mixes the runs, differs by more.
_LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
_GRADIENT_TOLERANCE = {"fp32": 1e-2, "bf16": 2e-1}
# A gradient that is zero on paper is rounding in practice: compared with all others' norm.
_GRADIENT_FLOOR = {"fp32": 1e-5, "bf16": 1e-2}


class NotAlike(Exception):
    """Together the runs do not do what each does alone; says how."""


def require_alike(
    models: Sequence[Model], materials: Materials, rows: Int[Tensor, "run batch"]
) -> None:
    """Compare the first step on these examples with that of each model alone.

    Raises NotAlike, and changes no model.
    """
    # Copies: the comparison must leave no gradient and no running average behind.
    together, alone = (copy.deepcopy(list(models)) for _ in range(2))
    try:
        stack = Stack(together, materials)
        with autocast(materials):
            found = stack.losses(materials.splits["train"].pick(rows))
        torch.autograd.backward(found.sum())
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise NotAlike(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    for run, model in enumerate(alone):
        with autocast(materials):
            loss = model.loss(materials.splits["train"].pick(rows[run]), materials)
        torch.autograd.backward(loss)
        if difference := _difference(stack, found[run], model, loss, run, materials):
            raise NotAlike(difference)


def _difference(  # noqa: PLR0913
    stack: Stack, found: Tensor, model: Model, loss: Tensor, run: int, materials: Materials
) -> str:
    """What a run does otherwise in the pass than alone; empty if nothing."""
    precision = materials.budget.precision
    if not torch.allclose(found.float(), loss.float(), atol=_LOSS_TOLERANCE[precision]):
        return f"the first loss is {found:.6g} in the pass, {loss:.6g} alone"
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    floor = _GRADIENT_FLOOR[precision] * float(
        torch.stack([g.norm() for g in alone.values()]).norm()
    )
    for name, stacked in stack.parameters.items():
        expected, both = alone.get(name), stacked.grad
        if (expected is None) != (both is None):
            return f"the gradient of {name} is missing in one of the two"
        if expected is None or both is None:
            continue
        apart = float((both[run] - expected).norm())
        if apart > _GRADIENT_TOLERANCE[precision] * float(expected.norm()) + floor:
            return f"the first gradient of {name} is another in the pass than alone"
    return ""
