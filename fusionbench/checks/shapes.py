"""Shapes: whatever the encoder's depth, width, grid and prefix, tokens come out as declared."""

from dataclasses import replace

from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused, StackShape, Unsupported
from fusionbench.checks.outcome import CheckFailed, CheckSkipped
from fusionbench.checks.subject import SHAPE, Subject, run_drawn
from fusionbench.checks.suite import check


@check
def shapes(subject: Subject) -> str | None:
    """Tokens are [batch, token, out_dim], as many for one image as for three."""
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
    """So they are without CLS, and with CLS and registers, which are no patches."""
    note = _each(subject, *(replace(SHAPE, prefix=prefix) for prefix in (0, 2, 5)))
    shapes = [replace(SHAPE, prefix=prefix) for prefix in (1, 2, 5)]
    counts = [run_drawn(subject.build(shape)).tokens.shape[1] for shape in shapes]
    if len(set(counts)) > 1:
        raise CheckFailed(f"gives {counts} tokens where 0, 1 and 4 registers follow CLS")
    return note


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
    given = list(fused.tokens.shape)
    if len(given) != 3 or given[0] != batch or given[2] != method.out_dim or not given[1]:
        wanted = f"[{batch}, tokens, out_dim={method.out_dim}]"
        raise CheckFailed(f"{_said(method.shape)}: tokens are {given}, declared {wanted}")
    if not fused.tokens.isfinite().all():
        raise CheckFailed(f"{_said(method.shape)}: tokens are not finite")


def _said(shape: StackShape) -> str:
    grid = "x".join(map(str, shape.grid))
    return f"{shape.layers} blocks, width {shape.dim}, grid {grid}, prefix {shape.prefix}"
