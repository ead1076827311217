"""What a method says about itself: its parameters, its start, its needs."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fusionbench.checks.compare import ROUNDING, differ, distance
from fusionbench.checks.gradients import loss_of
from fusionbench.checks.outcome import CheckFailed, CheckSkipped
from fusionbench.checks.subject import SHAPE, Subject, outputs, run, without_query
from fusionbench.checks.suite import check, checks
from fusionbench.checks.toy import ToyEncoder, draw
from fusionbench.harness.model import build_fusion
from fusionbench.types import StackShape, Unsupported

_SAME_START = 1e-5


@check
def expectations(subject: Subject) -> None:
    """The failures that it expects are named after checks, and each has a reason."""
    for name, reason in subject.build().expected_failures.items():
        if name not in checks():
            raise CheckFailed(f"expects {name!r} to fail, and there is no such check")
        if not reason:
            raise CheckFailed(f"expects {name!r} to fail, but does not say why")


@check
def parameters(subject: Subject) -> str:
    """All that is trained is registered before the first batch: counts and optimisers see it."""
    method = subject.build()
    before = {name: parameter.numel() for name, parameter in method.named_parameters()}
    loss = loss_of(run(method, *draw(SHAPE)))
    if before != {name: parameter.numel() for name, parameter in method.named_parameters()}:
        raise CheckFailed("the first batch makes parameters that no optimiser has seen")
    registered = {id(parameter) for parameter in method.parameters()}
    hidden = [list(leaf.shape) for leaf in _leaves(loss) if id(leaf) not in registered]
    if hidden:
        raise CheckFailed(f"uses {len(hidden)} weights that are not registered: shapes {hidden}")
    return f"{sum(before.values())} parameters"


@check
def identity(subject: Subject) -> str:
    """It starts as the penultimate layer if and only if it declares identity_at_init."""
    for shape in (SHAPE, replace(SHAPE, layers=4, prefix=2), replace(SHAPE, prefix=0)):
        try:
            method = subject.build(shape)
        except Unsupported:
            continue
        apart = _from_penultimate(subject, shape)
        if method.identity_at_init and apart > _SAME_START:
            raise CheckFailed(f"declares identity_at_init, but starts {apart:.2g} away from it")
        if not method.identity_at_init and apart <= _SAME_START:
            raise CheckFailed("starts as the penultimate layer, but does not declare it")
    return "yes" if subject.build().identity_at_init else "declares none"


@check
def needs_query(subject: Subject) -> str:
    """It depends on the question if and only if it declares needs_query."""
    method = subject.jittered().eval()
    tokens, query = draw(SHAPE)
    other = draw(SHAPE, seed=7)[1]
    follows = differ(run(method, tokens, query), run(method, tokens, other), tolerance=ROUNDING)
    if follows and not method.needs_query:
        raise CheckFailed("depends on the question, but does not declare needs_query")
    if method.needs_query and not follows:
        raise CheckFailed("declares needs_query, but no output depends on the question")
    mute = without_query(SHAPE)
    if not method.needs_query:
        run(subject.build(mute), *draw(mute))
        return "no"
    try:
        build_fusion(subject.cls, subject.settings, mute)
    except (Unsupported, ValueError):
        return "yes, and it refuses to run without one"
    raise CheckFailed("declares needs_query, but is built for a reader that gives none")


@check
def needs_grid(subject: Subject) -> str:
    """It depends on where patches lie, height and width apart, only if it declares needs_grid."""
    square, flat = SHAPE, replace(SHAPE, grid=(2, 8))
    try:
        methods = [subject.jittered(shape).eval() for shape in (square, flat)]
    except Unsupported as reason:
        raise CheckSkipped(str(reason)) from reason
    methods[1].load_state_dict(methods[0].state_dict())
    follows = differ(*(run(method, *draw(square)) for method in methods))
    if follows and not methods[0].needs_grid:
        raise CheckFailed("a grid of 2 x 8 gives other outputs than one of 4 x 4; needs_grid")
    if methods[0].needs_grid and not follows:
        raise CheckFailed("declares needs_grid, but grids of 2 x 8 and 4 x 4 give the same outputs")
    return "yes" if follows else "no"


def _from_penultimate(subject: Subject, shape: StackShape) -> float:
    """How far the tokens are from `hs[L-1]` without prefix; injections have to be zero."""
    method = subject.build(shape).eval()
    tokens, query = draw(shape)
    penultimate = ToyEncoder(shape).states_from(tokens)[shape.layer(-2), :, shape.prefix :]
    fused = run(method, tokens, query)
    if fused.tokens.shape != penultimate.shape:
        return float("inf")
    if any(values.any() for name, values in outputs(fused) if name.startswith("injection")):
        return float("inf")
    return distance(fused.tokens, penultimate)


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The trainable tensors that a loss was computed from."""
    waiting = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            yield leaf
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
