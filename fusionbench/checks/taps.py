"""What a method says it reads and writes is what it reads and writes: the cache relies on it."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.fusion import Fusion, InEncoderFusion, Method, Tap
from fusionbench.api.types import StackShape
from fusionbench.checks.compare import differ
from fusionbench.checks.outcome import CheckFailed, CheckSkipped
from fusionbench.checks.subject import SHAPE, Subject, outputs, run_on
from fusionbench.checks.suite import check
from fusionbench.checks.toy import ToyEncoder, draw
from fusionbench.harness.stepping import fuse, taps_of


@check
def taps(subject: Subject) -> str:
    """The hidden states it declares are resolved, are all it asks for, and are all used."""
    method = subject.jittered()
    declared = taps_of(method)
    for deep in (method, subject.build(replace(SHAPE, layers=24))):
        _expect_resolved(taps_of(deep), deep.shape)
    for training in (False, True):
        method.train(training)
        asked = _asked(method)
        if asked != declared:
            mode = "training" if training else "evaluation"
            raise CheckFailed(f"declares the taps {declared}, but in {mode} asks for {asked}")
    if isinstance(method, Fusion):
        _expect_all_read(method.eval())
    elif isinstance(method, InEncoderFusion):
        _expect_last_block_read(method.eval())
    return f"{len(declared)} taps of {method.shape.layers} blocks"


@check
def writes(subject: Subject) -> None:
    """It writes into the tokens between blocks if and only if it says so."""
    method = subject.jittered().eval()
    if not isinstance(method, InEncoderFusion):
        raise CheckSkipped("reads after the encoder, between no blocks")
    tokens, query = draw(SHAPE)
    states = ToyEncoder(SHAPE).states_from(tokens)
    state = method.start(states[0], query)
    changed = []
    for block in range(1, method.depth + 1):
        written, state = method.after_block(block, states[block], state)
        if not torch.equal(written, states[block]):
            changed.append(block)
    silent = any(subject.settings.get(k) in values for k, values in method.silent_if.items())
    if silent == method.writes and set(method.silent_if) <= set(subject.settings):
        raise CheckFailed(f"silent_if says {silent}, but writes is {method.writes}")
    if changed and not method.writes:
        raise CheckFailed(f"declares writes=False, but changes the tokens after blocks {changed}")
    if method.writes and not changed:
        raise CheckFailed("declares writes=True, which costs the cache, but changes no token")


def _expect_resolved(declared: tuple[Tap, ...], shape: StackShape) -> None:
    if not declared or not all(declared):
        raise CheckFailed(f"declares no hidden state in {declared}")
    for tap in declared:
        if not all(isinstance(i, int) and 0 <= i <= shape.normed for i in tap):
            raise CheckFailed(
                f"tap {tap} is not resolved: indices are integers 0..{shape.layers}, "
                f"or {shape.normed} for hs[{shape.layers}] after the norm"
            )
        if len(set(tap)) != len(tap):
            raise CheckFailed(f"tap {tap} names a hidden state twice")


def _asked(method: Method) -> tuple[Tap, ...]:
    """The taps that the engine is asked for."""
    asked: list[Tap] = []
    tokens, query = draw(method.shape)
    encoder = ToyEncoder(method.shape)
    states = encoder.states_from(tokens)

    def gather(taps: tuple[Tap, ...]) -> Float[Tensor, "tap batch token dim"]:
        asked.extend(taps)
        return torch.stack([states[list(tap)].mean(dim=0) for tap in taps])

    fuse(method, gather, query, encoder)
    return tuple(asked)


def _expect_all_read(method: Fusion) -> None:
    hidden, query = _hidden(method, seed=1)
    other, _ = _hidden(method, seed=2)
    given = dict(outputs(method(hidden, query)))
    for position, tap in enumerate(method.taps):
        changed = hidden.clone()
        changed[position] = other[position]
        if not differ(given, dict(outputs(method(changed, query))), tolerance=0.0):
            raise CheckFailed(f"declares tap {tap}, but no output depends on it")


def _hidden(
    method: Fusion, *, seed: int
) -> tuple[Float[Tensor, "tap batch token dim"], Float[Tensor, "batch query_dim"]]:
    """Independent taps: those of one encoder resemble each other."""
    drawn = [draw(method.shape, seed=seed * 100 + number)[0] for number in range(len(method.taps))]
    return torch.stack(drawn), draw(method.shape, seed=seed)[1]


def _expect_last_block_read(method: InEncoderFusion) -> None:
    if not 1 <= method.depth <= method.shape.layers:
        raise CheckFailed(f"depth must lie in 1..{method.shape.layers}, but is {method.depth}")
    tokens, query = draw(method.shape)
    encoder = ToyEncoder(method.shape)
    other = ToyEncoder(method.shape)
    with torch.no_grad():
        for weights in other.parameters():
            weights[method.depth - 1] *= -2
    seen = [
        dict(outputs(run_on(method, e.states_from(tokens), query, e))) for e in (encoder, other)
    ]
    if not differ(*seen, tolerance=0.0):
        raise CheckFailed(f"declares depth {method.depth}, but no output depends on that block")
