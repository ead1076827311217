"""Shapes: whatever the encoder's depth, width, grid and prefix, tokens come out as declared."""

from dataclasses import replace

import torch
from torch import Tensor

from fusionbench.checks.outcome import CheckFailed, CheckSkipped
from fusionbench.checks.subject import SHAPE, Subject, run_drawn
from fusionbench.checks.suite import check
from fusionbench.fusion import Method
from fusionbench.types import Fused, StackShape, Unsupported


@check
def shapes(subject: Subject) -> str | None:
    """Tokens are [batch, token, out_dim], and everything else has the shape of the contract."""
    return _each(subject, SHAPE)


@check
def shapes_depth(subject: Subject) -> str | None:
    """So they are for encoders of 2, 3, 12 and 24 blocks."""
    return _each(subject, *(replace(SHAPE, layers=layers) for layers in (2, 3, 12, 24)))


@check
def shapes_width(subject: Subject) -> str | None:
    """So they are for widths that no number of heads divides, and for other query widths."""
    odd = (replace(SHAPE, dim=dim, query_dim=dim - 2) for dim in (13, 24, 33))
    return _each(subject, *odd)


@check
def shapes_grid(subject: Subject) -> str | None:
    """So they are for grids that are not square, odd, or a single row."""
    return _each(subject, *(replace(SHAPE, grid=grid) for grid in ((4, 6), (3, 5), (1, 8))))


@check
def shapes_prefix(subject: Subject) -> str | None:
    """So they are without CLS, and with CLS and registers."""
    return _each(subject, *(replace(SHAPE, prefix=prefix) for prefix in (0, 2, 5)))


def _each(subject: Subject, *shapes: StackShape) -> str | None:
    """Try all shapes; what the method refuses in words is noted, all refused is a skip."""
    refused = []
    for shape in shapes:
        try:
            method = subject.build(shape)
            fused = [run_drawn(method, batch=batch) for batch in (1, 3)]
        except Unsupported as reason:
            refused.append(str(reason))
            continue
        except Exception as error:
            raise CheckFailed(f"{_said(shape)}: {type(error).__name__}: {error}") from error
        _expect_shapes(method, fused[0], 1)
        _expect_shapes(method, fused[1], 3)
        if fused[0].tokens.shape[1] != fused[1].tokens.shape[1]:
            raise CheckFailed(f"{_said(shape)}: the number of tokens follows the batch")
    if len(refused) == len(shapes):
        raise CheckSkipped("; ".join(dict.fromkeys(refused)))
    return f"refused: {'; '.join(dict.fromkeys(refused))}" if refused else None


def _expect_shapes(method: Method, fused: Fused, batch: int) -> None:
    where = _said(method.shape)
    tokens = fused.tokens
    given = list(tokens.shape)
    if tokens.ndim != 3 or given[0] != batch or given[2] != method.out_dim or not given[1]:
        wanted = f"[{batch}, tokens, out_dim={method.out_dim}]"
        raise CheckFailed(f"{where}: tokens are {given}, declared {wanted}")
    for injection in fused.injections:
        values = list(injection.values.shape)
        if len(values) != 3 or values[0] != batch:
            raise CheckFailed(f"{where}: an injection is {values}, not [{batch}, tokens, width]")
        if injection.layer < 0 or injection.when not in ("before", "after"):
            raise CheckFailed(f"{where}: no reader layer is {injection.when} {injection.layer}")
    if fused.summary is not None and (fused.summary.ndim != 2 or len(fused.summary) != batch):
        raise CheckFailed(f"{where}: the summary is {list(fused.summary.shape)}, not [batch, dim]")
    for name, loss in fused.losses.items():
        if loss.ndim:
            raise CheckFailed(f"{where}: loss {name!r} is {list(loss.shape)}, not one number")
    for name, values in fused.trace.items():
        _expect_instrument(where, name, values)


def _expect_instrument(where: str, name: str, values: Tensor) -> None:
    # A trace with a gradient would keep the graph of every batch of an evaluation alive.
    if values.requires_grad:
        raise CheckFailed(f"{where}: trace {name!r} carries a gradient; detach it")
    if not torch.isfinite(values).all():
        raise CheckFailed(f"{where}: trace {name!r} is not finite")


def _said(shape: StackShape) -> str:
    grid = "x".join(map(str, shape.grid))
    return f"{shape.layers} blocks, width {shape.dim}, grid {grid}, prefix {shape.prefix}"
