"""Numbers: full precision stays full, bf16 stays near it, and nothing overflows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.fusion import Method
from fusionbench.checks.compare import expect_equal
from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import SHAPE, Subject, outputs, run_on, told
from fusionbench.checks.suite import check
from fusionbench.checks.toy import ToyEncoder, draw

_ROUNDING = 0.1
"""Relative to the largest value: bf16 keeps 8 bits, and a network of blocks adds up its errors."""
_HUGE = 1e4
"""Massive activations of real encoders reach some thousands."""


@check
def dtype_fp32(subject: Subject) -> None:
    """float32 states give float32 outputs."""
    _expect_dtype(subject.build(), torch.float32)


@check
def dtype_bf16(subject: Subject) -> None:
    """In bfloat16 throughout it runs, stays in bfloat16, and near full precision."""
    method = subject.jittered().eval()
    tokens, query = draw(SHAPE)
    exact = told(method, tokens, query)
    method = method.to(torch.bfloat16)
    rounded = told(method, tokens.bfloat16(), query.bfloat16())
    _expect_dtype(method, torch.bfloat16)
    expect_equal(exact, rounded, "bfloat16 and float32", tolerance=_ROUNDING)


@check
def autocast(subject: Subject) -> None:
    """Under bfloat16 autocast it trains, and stays near full precision."""
    method = subject.jittered().eval()
    tokens, query = draw(SHAPE)
    exact = told(method, tokens, query)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = told(method, tokens, query)
    expect_equal(exact, rounded, "autocast and float32", tolerance=_ROUNDING)
    total = sum(values.float().sum() for values in rounded.values())
    if isinstance(total, Tensor) and total.requires_grad:
        torch.autograd.backward(total)


@check
def extreme_inputs(subject: Subject) -> None:
    """Zero, constant and huge inputs give finite outputs and gradients."""
    for what, states, query in _extremes():
        method = subject.build()
        fused = run_on(method, states, query, ToyEncoder(SHAPE))
        given = dict(outputs(fused))
        for name, values in given.items():
            if not torch.isfinite(values).all():
                raise CheckFailed(f"{what} inputs: {name} is not finite")
        parameters = dict(method.named_parameters())
        total = torch.stack([values.mean() for values in given.values()]).sum()
        total = total + sum(fused.losses.values())
        if not total.requires_grad:
            continue
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, grad in zip(parameters, grads, strict=True):
            if grad is not None and not torch.isfinite(grad).all():
                raise CheckFailed(f"{what} inputs: the gradient of {name} is not finite")


def _extremes() -> Iterator[
    tuple[str, Float[Tensor, "state batch token dim"], Float[Tensor, "batch query_dim"]]
]:
    """Every state alike: the blocks of an encoder would make a constant vary."""
    tokens, query = draw(SHAPE)
    states = ToyEncoder(SHAPE).states_from(tokens)
    yield "zero", torch.zeros_like(states), torch.zeros_like(query)
    yield "constant", torch.ones_like(states), torch.ones_like(query)
    yield "huge", _HUGE * states, query


def _expect_dtype(method: Method, dtype: torch.dtype) -> None:
    tokens, query = (drawn.to(dtype) for drawn in draw(SHAPE))
    for name, values in told(method, tokens, query).items():
        if values.dtype != dtype:
            raise CheckFailed(f"{dtype} states give {values.dtype} {name}")
