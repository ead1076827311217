"""Trained parameters of methods, from their equations: the sizes of their controls."""

import math
from collections.abc import Callable, Mapping
from functools import partial

from fusionbench.api import StackShape, Unsupported, one_of, paper_taps

_REDUCTION = 4
_POINTS = 4
_SPANS = {"former": range(1, 13), "latter": range(13, 25), "all": range(1, 25)}


def parameters_of(like: str, shape: StackShape) -> int:
    """Trained parameters of the method `like`, of `SIZES`, with its default settings.

    Raises ValueError for another name, and Unsupported where the method itself is.

    The layers that a paper names may coincide on a shallow encoder, and heads must divide the
    width, so the counts depend on the shape in the same way as in the methods.
    """
    return SIZES[one_of("like", like, tuple(SIZES))](shape)


def units(count: float, places: int) -> tuple[int, ...]:
    """`round(count)` units dealt to `places` places, as evenly as possible, the first ones more."""
    whole, more = divmod(max(round(count), places), places)
    return tuple(whole + (place < more) for place in range(places))


def _alf(shape: StackShape) -> int:
    return 8 * shape.dim**2 + 8 * shape.dim


def _lln_layerscale(shape: StackShape, *, shared: bool) -> int:
    modules = 1 if shared else shape.layers
    return modules * (shape.dim**2 + 3 * shape.dim) + shape.layers


def _llava_stf(shape: StackShape) -> int:
    _expect_tiles(shape)
    wide = len(paper_taps(shape, "23,21,18,15,12,9,6,3")) * shape.dim
    return wide * (wide // 2) + wide // 2 + wide // 2 * shape.dim + shape.dim


def _token_packer(shape: StackShape) -> int:
    _expect_tiles(shape)
    seen = len(paper_taps(shape, "12,16,22,23"))
    return (7 + 2 * seen) * shape.dim**2 + 14 * shape.dim


def _deformable(shape: StackShape, *, layers: str) -> int:
    """Of `mmfuser` and `lsf_external_modular`, which differ in their keys."""
    dim, levels = shape.dim, len(paper_taps(shape, layers))
    points = _POINTS * math.gcd(16, dim)
    return 4 * dim**2 + 12 * dim + 3 * points * (dim + 1) * (levels + 1)


def inner_blocks(shape: StackShape) -> int:
    """L-1, the blocks before the last. Raises Unsupported for an encoder of one block."""
    if shape.layers < 2:
        raise Unsupported("steps from block 1 to L-1, but this encoder has one block")
    return shape.layers - 1


def _mema(shape: StackShape) -> int:
    """Without a question that of `mema-no_query`."""
    inner_blocks(shape)
    dim, hidden = shape.dim, max(shape.dim // _REDUCTION, 1)
    asked = dim if shape.query_dim else 0
    looks = 3 if shape.prefix else 2
    query = asked * (shape.query_dim + 1)
    summary = looks * dim**2 + dim
    unit = (2 * dim + asked) * hidden + hidden + 3 * (hidden * dim + 2 * dim)
    return query + summary + unit + 2 * (dim**2 + dim) + dim + 1


def _expect_tiles(shape: StackShape) -> None:
    if shape.grid[0] % 2 or shape.grid[1] % 2:
        raise Unsupported(f"regions of 2 x 2 do not tile a grid of {shape.grid}")


def _span(name: str) -> str:
    return ",".join(map(str, _SPANS[name]))


SIZES: Mapping[str, Callable[[StackShape], int]] = {
    "mmfuser": partial(_deformable, layers="3,8,13,18"),
    "alf": _alf,
    "llava_stf": _llava_stf,
    "lln_layerscale-shared": partial(_lln_layerscale, shared=True),
    "lln_layerscale-per_layer": partial(_lln_layerscale, shared=False),
    "lsf_external_modular-18": partial(_deformable, layers="18"),
    "lsf_external_modular-3_18_23": partial(_deformable, layers="3,18"),
    "lsf_external_modular-former": partial(_deformable, layers=_span("former")),
    "lsf_external_modular-latter": partial(_deformable, layers=_span("latter")),
    "lsf_external_modular-all": partial(_deformable, layers=_span("all")),
    "token_packer": _token_packer,
    "mema": _mema,
}
"""Name of a method -> its count on an encoder."""
