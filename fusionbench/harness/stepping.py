"""How a method meets hidden states: all at once, stepped over a cache, or stepped with the encoder.

The three ways differ in cost only; which one applies follows from what the method declares.
"""

import operator
from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor

from fusionbench.api.encoders import Encoder
from fusionbench.api.fusion import Fusion, InEncoderFusion, Method, Tap
from fusionbench.api.types import Fused

States = Callable[[tuple[Tap, ...]], Float[Tensor, "tap batch token dim"]]
"""Gives the hidden states of one batch, one averaged set per tap."""


def needs_encoder(method: Method) -> bool:
    """True if the encoder must run in every step, so that no feature cache is possible."""
    return isinstance(method, InEncoderFusion) and method.writes


def taps_of(method: Method) -> tuple[Tap, ...]:
    """The hidden states that must be at hand before the method can run, in plain integers."""
    if isinstance(method, Fusion):
        return tuple(tuple(map(operator.index, tap)) for tap in method.taps)
    if isinstance(method, InEncoderFusion):
        # Nothing can be written before block 1 has run: hs[1] is the frozen encoder's for all.
        # From there on a method that writes makes its own states; the others read the cache.
        last = 1 if method.writes else method.depth
        return tuple((index,) for index in range(last + 1))
    raise TypeError(f"{type(method).__name__} is neither a Fusion nor an InEncoderFusion")


def fuse(
    method: Method,
    states: States,
    query: Float[Tensor, "batch query_dim"],
    encoder: Encoder | None = None,
) -> Fused:
    """Run a method on one batch; `encoder` is needed only where `needs_encoder` says so.

    Raises TypeError for a class of another kind, and for a result that is no `Fused`.
    """
    found: object = _fused(method, states(taps_of(method)), query, encoder)
    if not isinstance(found, Fused):
        last = "forward" if isinstance(method, Fusion) else "finish"
        raise TypeError(f"{last} gave a {type(found).__name__}; return Fused(tokens=...)")
    return found


def _fused(
    method: Method,
    hidden: Float[Tensor, "tap batch token dim"],
    query: Float[Tensor, "batch query_dim"],
    encoder: Encoder | None,
) -> Fused:
    if isinstance(method, Fusion):
        return method(hidden, query)
    if not isinstance(method, InEncoderFusion):
        raise TypeError(f"{type(method).__name__} is neither a Fusion nor an InEncoderFusion")
    if method.writes:
        return _step_with(encoder, method, hidden, query)
    return _step_over(method, hidden, query)


def through(
    encoder: Encoder,
    method: InEncoderFusion,
    index: int,
    tokens: Float[Tensor, "batch token dim"],
) -> Float[Tensor, "batch token dim"]:
    """Output of a frozen block, with what the method adds to its linear layers."""
    if method.adapts:
        return encoder.adapted(index, tokens, partial(method.delta, index))
    return encoder.block(index, tokens)


def _step_over(
    method: InEncoderFusion,
    hidden: Float[Tensor, "tap batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Fused:
    state = method.start(hidden[0], query)
    tokens = hidden[0]
    for index in range(1, method.depth + 1):
        tokens, state = method.after_block(index, hidden[index], state)
    return method.finish(tokens, state)


def _step_with(
    encoder: Encoder | None,
    method: InEncoderFusion,
    hidden: Float[Tensor, "tap batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Fused:
    if encoder is None:
        raise TypeError(f"{type(method).__name__} writes into the encoder, but none was given")
    state = method.start(hidden[0], query)
    tokens, state = method.after_block(1, hidden[1], state)
    for index in range(2, method.depth + 1):
        tokens = through(encoder, method, index, tokens)
        tokens, state = method.after_block(index, tokens, state)
    return method.finish(tokens, state)
