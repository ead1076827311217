"""Checks of what a method declares: shapes, taps, parameters, initial state, needs."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.fusion import Fusion, InEncoderFusion, Method, Tap
from fusionbench.api.types import Fused, ReaderShape, StackShape, Unsupported
from fusionbench.checks.kit import (
    ROUNDING,
    CheckFailed,
    CheckSkipped,
    check,
    checks,
    differ,
    distance,
)
from fusionbench.checks.toy import (
    READER,
    SHAPE,
    Subject,
    ToyEncoder,
    draw,
    outputs,
    outputs_of,
    reader_for,
    run,
    run_drawn,
    run_on,
    without_query,
)
from fusionbench.checks.training import loss_of
from fusionbench.harness.model import build_fusion
from fusionbench.harness.stepping import fuse, taps_of
from fusionbench.registry.cards import CLIP_L, count


@check
def shapes(subject: Subject) -> str | None:
    """Tokens are [batch, token, out_dim], with the same number for any batch size."""
    return _each(subject, SHAPE)


@check
def shapes_depth(subject: Subject) -> str | None:
    """The shapes hold for encoders of 2, 3, 12 and 24 blocks."""
    return _each(subject, *(replace(SHAPE, layers=layers) for layers in (2, 3, 12, 24)))


@check
def shapes_width(subject: Subject) -> str | None:
    """The shapes hold for odd widths and for other query widths."""
    odd = (replace(SHAPE, dim=dim, query_dim=dim - 2) for dim in (13, 24, 33))
    return _each(subject, *odd)


@check
def shapes_grid(subject: Subject) -> str | None:
    """The shapes hold for grids that are not square, odd, or a single row."""
    return _each(subject, *(replace(SHAPE, grid=grid) for grid in ((4, 6), (3, 5), (1, 8))))


@check
def shapes_prefix(subject: Subject) -> str | None:
    """The shapes hold without CLS and with CLS and registers, which are not patches."""
    note = _each(subject, *(replace(SHAPE, prefix=prefix) for prefix in (0, 2, 5)))
    shapes = [replace(SHAPE, prefix=prefix) for prefix in (1, 2, 5)]
    counts = [run_drawn(subject.build(shape)).tokens.shape[1] for shape in shapes]
    if len(set(counts)) > 1:
        raise CheckFailed(f"gives {counts} tokens where 0, 1 and 4 registers follow CLS")
    return note


def _each(subject: Subject, *shapes: StackShape) -> str | None:
    """Try all shapes; returns the reasons of refused ones, skips if all are refused."""
    refused = []
    for shape in shapes:
        try:
            method = subject.build(shape)
            fused = [run_drawn(method, batch=batch) for batch in (1, 3)]
        except Unsupported as reason:
            refused.append(str(reason))
            continue
        except Exception as error:
            raise CheckFailed(f"{_shape_text(shape)}: {type(error).__name__}: {error}") from error
        _expect_shapes(method, fused[0], 1)
        _expect_shapes(method, fused[1], 3)
        if fused[0].tokens.shape[1] != fused[1].tokens.shape[1]:
            raise CheckFailed(f"{_shape_text(shape)}: the number of tokens follows the batch")
    if len(refused) == len(shapes):
        raise CheckSkipped("; ".join(dict.fromkeys(refused)))
    return f"refused: {'; '.join(dict.fromkeys(refused))}" if refused else None


def _expect_shapes(method: Method, fused: Fused, batch: int) -> None:
    given = list(fused.tokens.shape)
    if len(given) != 3 or given[0] != batch or given[2] != method.out_dim or not given[1]:
        wanted = f"[{batch}, tokens, out_dim={method.out_dim}]"
        raise CheckFailed(f"{_shape_text(method.shape)}: tokens are {given}, declared {wanted}")
    if not fused.tokens.isfinite().all():
        raise CheckFailed(f"{_shape_text(method.shape)}: tokens are not finite")


def _shape_text(shape: StackShape) -> str:
    grid = "x".join(map(str, shape.grid))
    return f"{shape.layers} blocks, width {shape.dim}, grid {grid}, prefix {shape.prefix}"


_BATCH = 3


@check
def extras(subject: Subject) -> str:
    """Injections, summary, losses and trace have the declared shapes."""
    method = subject.build()
    fused = run_drawn(method, batch=_BATCH)
    _expect_injections(method, fused)
    if fused.summary is not None and (fused.summary.ndim != 2 or len(fused.summary) != _BATCH):
        raise CheckFailed(f"the summary is {list(fused.summary.shape)}, not [{_BATCH}, width]")
    for name, loss in fused.losses.items():
        if loss.ndim:
            raise CheckFailed(f"the loss {name!r} is {list(loss.shape)}, not one number")
    for name, values in fused.trace.items():
        # With a gradient it would keep the graph of every batch alive.
        if values.requires_grad:
            raise CheckFailed(f"the trace {name!r} carries a gradient; detach it")
        if not torch.isfinite(values).all():
            raise CheckFailed(f"the trace {name!r} is not finite")
    inside = ["reaches into the reader"] if fused.reaches_inside else []
    has = [*inside, *fused.losses, *fused.trace]
    return ", ".join(has) or "tokens alone"


def _expect_injections(method: Method, fused: Fused) -> None:
    for injection in fused.injections:
        wide = method.out_dim if injection.through_projector else READER.width
        given = list(injection.values.shape)
        if len(given) != 3 or given[0] != _BATCH or given[2] != wide:
            raise CheckFailed(f"an injection is {given}, not [{_BATCH}, tokens, {wide}]")
        if injection.when not in ("before", "after"):
            raise CheckFailed(f"an injection is neither before nor after: {injection.when!r}")
    for layer in [*(i.layer for i in fused.injections), *(p.layer for p in fused.patches)]:
        if not 0 <= layer < READER.layers:
            raise CheckFailed(f"reaches into reader layer {layer} of 0..{READER.layers - 1}")


@check
def taps(subject: Subject) -> str:
    """Declared taps are resolved, are exactly those it asks for, and all affect the output."""
    method = subject.jittered()
    for deep in (method, subject.build(replace(SHAPE, layers=24))):
        _expect_resolved(deep.taps if isinstance(deep, Fusion) else taps_of(deep), deep.shape)
    declared = taps_of(method)
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
    """It changes tokens between blocks if and only if it declares `writes`."""
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
    silent = not type(method).writes
    silent |= any(subject.settings.get(k) in values for k, values in method.silent_if.items())
    if silent == method.writes and set(method.silent_if) <= set(subject.settings):
        raise CheckFailed(f"silent_if says {silent}, but writes is {method.writes}")
    if changed and not method.writes:
        raise CheckFailed(f"declares writes=False, but changes the tokens after blocks {changed}")
    if method.writes and not changed and not method.adapts:
        raise CheckFailed("declares writes=True, which costs the cache, but changes no token")


def _expect_resolved(declared: tuple[Tap, ...], shape: StackShape) -> None:
    if not declared or not all(declared):
        raise CheckFailed(f"declares no hidden state in {declared}")
    for tap in declared:
        if not all(map(shape.has, tap)):
            raise CheckFailed(
                f"tap {tap} is not resolved: indices are integers 0..{shape.layers}, or "
                "shape.normed_layer(i) for hs[i] after the final norm"
            )
        if len(set(tap)) != len(tap):
            raise CheckFailed(f"tap {tap} names a hidden state twice")


def _asked(method: Method) -> tuple[Tap, ...]:
    """Taps that the method asks the engine for."""
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


_CLIP_L = StackShape(
    layers=24,
    dim=1024,
    grid=(24, 24),
    prefix=1,
    query_dim=4096,
    mlp=4096,
    reader=ReaderShape(layers=32, width=4096, heads=32, mlp=11008),
)
"""Of the formulas: CLIP ViT-L/14 at 336 pixels under a 7B language model."""
_SAME_START = 1e-5


@check
def expectations(subject: Subject) -> None:
    """Expected failures name existing checks, each with a reason."""
    for name, reason in subject.build().expected_failures.items():
        if name not in checks():
            raise CheckFailed(f"expects {name!r} to fail, and there is no such check")
        if not reason:
            raise CheckFailed(f"expects {name!r} to fail, but does not say why")


@check
def parameters(subject: Subject) -> str:
    """All trained weights are registered before the first batch and match the declared formula."""
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
    follows = differ(
        outputs_of(method, tokens, query), outputs_of(method, tokens, other), tolerance=ROUNDING
    )
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
    """It depends on height and width of the grid if and only if it declares needs_grid."""
    square, flat = SHAPE, replace(SHAPE, grid=(2, 8))
    try:
        methods = [subject.jittered(shape).eval() for shape in (square, flat)]
    except Unsupported as reason:
        raise CheckSkipped(str(reason)) from reason
    methods[1].load_state_dict(methods[0].state_dict())
    follows = differ(*(outputs_of(method, *draw(square)) for method in methods))
    if follows and not methods[0].needs_grid:
        raise CheckFailed("a grid of 2 x 8 gives other outputs than one of 4 x 4; needs_grid")
    if methods[0].needs_grid and not follows:
        raise CheckFailed("declares needs_grid, but grids of 2 x 8 and 4 x 4 give the same outputs")
    return "yes" if follows else "no"


def _from_penultimate(subject: Subject, shape: StackShape) -> float:
    """Relative distance of the initial tokens, and of a decoder's answer, from `hs[L-1]`."""
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
    """Compare the declared parameter formula with the method at CLIP ViT-L/14-336."""
    formula, wide = subject.facts.get("parameters"), subject.facts.get("query_width")
    if not isinstance(formula, str):
        return ""
    query = int(wide) if isinstance(wide, int) else 0
    with torch.device("meta"):
        method = subject.build(replace(_CLIP_L, query_dim=query or CLIP_L.llm))
    trained = sum(parameter.numel() for parameter in method.parameters())
    trained += (method.out_dim - CLIP_L.width) * CLIP_L.llm
    declared = count(formula, subject.settings, query_width=query)
    if declared != trained:
        raise CheckFailed(f"at CLIP-L it trains {trained}, its formula {formula} gives {declared}")
    return f"; {declared} at CLIP-L, as declared"


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
