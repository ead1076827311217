"""What a method says about itself: its parameters, its start, its needs."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fusionbench.api.types import Fused, ReaderShape, StackShape, Unsupported
from fusionbench.checks.compare import ROUNDING, differ, distance
from fusionbench.checks.gradients import loss_of
from fusionbench.checks.outcome import CheckFailed, CheckSkipped
from fusionbench.checks.reading import reader_for
from fusionbench.checks.subject import SHAPE, Subject, run, told, without_query
from fusionbench.checks.suite import check, checks
from fusionbench.checks.toy import ToyEncoder, draw
from fusionbench.harness.model import build_fusion
from fusionbench.registry.cards import CLIP_L, count

_CLIP_L = StackShape(
    layers=24,
    dim=1024,
    grid=(24, 24),
    prefix=1,
    query_dim=4096,
    reader=ReaderShape(layers=32, width=4096, heads=32, mlp=11008),
)
"""Of the formulas: CLIP ViT-L/14 at 336 pixels under a 7B language model."""
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
    """All that is trained is registered before the first batch, and is what a formula declares."""
    method = subject.build()
    before = {name: parameter.numel() for name, parameter in method.named_parameters()}
    loss = loss_of(run(method, *draw(SHAPE)))
    if before != {name: parameter.numel() for name, parameter in method.named_parameters()}:
        raise CheckFailed("the first batch makes parameters that no optimiser has seen")
    registered = {id(parameter) for parameter in method.parameters()}
    hidden = [list(leaf.shape) for leaf in _leaves(loss) if id(leaf) not in registered]
    if hidden:
        raise CheckFailed(f"uses {len(hidden)} weights that are not registered: shapes {hidden}")
    return f"{sum(before.values())} parameters{_expect_formula(subject)}"


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
    follows = differ(told(method, tokens, query), told(method, tokens, other), tolerance=ROUNDING)
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
    follows = differ(*(told(method, *draw(square)) for method in methods))
    if follows and not methods[0].needs_grid:
        raise CheckFailed("a grid of 2 x 8 gives other outputs than one of 4 x 4; needs_grid")
    if methods[0].needs_grid and not follows:
        raise CheckFailed("declares needs_grid, but grids of 2 x 8 and 4 x 4 give the same outputs")
    return "yes" if follows else "no"


def _from_penultimate(subject: Subject, shape: StackShape) -> float:
    """How far the start is from `hs[L-1]` without prefix, tokens and a decoder's answer alike."""
    method = subject.build(shape).eval()
    tokens, query = draw(shape)
    penultimate = ToyEncoder(shape).states_from(tokens)[shape.layer(-2), :, shape.prefix :]
    fused = run(method, tokens, query)
    if fused.tokens.shape != penultimate.shape:
        return float("inf")
    apart = distance(fused.tokens, penultimate)
    if not fused.reaches_inside:
        return apart
    reader = reader_for(fused)
    answers = (reader.answer_to(each) for each in (fused, Fused(tokens=penultimate)))
    return max(apart, distance(*answers))


def _expect_formula(subject: Subject) -> str:
    """The registration's formula of what is trained, at the size of the papers."""
    formula, wide = subject.facts.get("parameters"), subject.facts.get("query_width")
    if not isinstance(formula, str):
        return ""
    query = int(wide) if isinstance(wide, int) else 0
    with torch.device("meta"):
        method = subject.build(replace(_CLIP_L, query_dim=query or CLIP_L.llm))
    trained = sum(parameter.numel() for parameter in method.parameters())
    trained += (method.out_dim - CLIP_L.width) * CLIP_L.llm
    said = count(formula, subject.settings, query_width=query)
    if said != trained:
        raise CheckFailed(f"at CLIP-L it trains {trained}, its formula {formula} says {said}")
    return f"; {said} at CLIP-L, as declared"


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
