"""Checks of precision, storage, torch.compile and torch.func.vmap."""

import copy
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api.fusion import Method
from fusionbench.checks.isolation import draws
from fusionbench.checks.kit import (
    ROUNDING,
    CheckFailed,
    CheckSkipped,
    check,
    expect_close,
    expect_equal,
)
from fusionbench.checks.toy import (
    BUDGET,
    SHAPE,
    FixedReader,
    Subject,
    ToyEncoder,
    draw,
    jitter,
    materials,
    outputs,
    outputs_of,
    run_on,
)
from fusionbench.harness.materials import Materials
from fusionbench.harness.model import Model, build_model
from fusionbench.harness.stack import Stack

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
    """In bfloat16 it runs, returns bfloat16, and is close to float32."""
    method = subject.jittered().eval()
    tokens, query = draw(SHAPE)
    exact = outputs_of(method, tokens, query)
    method = method.to(torch.bfloat16)
    rounded = outputs_of(method, tokens.bfloat16(), query.bfloat16())
    _expect_dtype(method, torch.bfloat16)
    expect_equal(exact, rounded, "bfloat16 and float32", tolerance=_ROUNDING)


@check
def autocast(subject: Subject) -> None:
    """Under bfloat16 autocast it trains and is close to float32."""
    method = subject.jittered().eval()
    tokens, query = draw(SHAPE)
    exact = outputs_of(method, tokens, query)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = outputs_of(method, tokens, query)
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
    """(name, states, query); all states are equal, which an encoder's blocks would change."""
    tokens, query = draw(SHAPE)
    states = ToyEncoder(SHAPE).states_from(tokens)
    yield "zero", torch.zeros_like(states), torch.zeros_like(query)
    yield "constant", torch.ones_like(states), torch.ones_like(query)
    yield "huge", _HUGE * states, query


def _expect_dtype(method: Method, dtype: torch.dtype) -> None:
    tokens, query = (drawn.to(dtype) for drawn in draw(SHAPE))
    for name, values in outputs_of(method, tokens, query).items():
        if values.dtype != dtype:
            raise CheckFailed(f"{dtype} states give {values.dtype} {name}")


@check
def state_dict(subject: Subject) -> None:
    """Loading its state_dict into a method of another seed gives the same outputs."""
    method, other = subject.jittered(seed=0).eval(), subject.jittered(seed=5).eval()
    other.load_state_dict(method.state_dict())
    _expect_same(method, other, "after load_state_dict")


@check
def safetensors(subject: Subject) -> None:
    """Loading its weights from safetensors gives the same outputs."""
    from safetensors.torch import load, save

    method, other = subject.jittered(seed=0).eval(), subject.jittered(seed=5).eval()
    other.load_state_dict(load(save(method.state_dict())))
    _expect_same(method, other, "from safetensors")


@check
def deepcopy(subject: Subject) -> None:
    """A deep copy gives the same outputs, and training the copy does not change the original."""
    method = subject.jittered().eval()
    twin = copy.deepcopy(method)
    _expect_same(method, twin, "a deep copy")
    before = outputs_of(method, *draw(SHAPE))
    with torch.no_grad():
        for values in (*twin.parameters(), *twin.buffers()):
            values.add_(1)
    expect_equal(
        before, outputs_of(method, *draw(SHAPE)), "while its copy trains", tolerance=ROUNDING
    )


@check
def pickled(subject: Subject) -> None:
    """A pickled copy gives the same outputs."""
    method = subject.jittered().eval()
    try:
        twin = pickle.loads(pickle.dumps(method))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CheckFailed(f"cannot be pickled: {error}") from error
    _expect_same(method, twin, "pickled")


def _expect_same(method: Method, twin: Method, what: str) -> None:
    given = draw(SHAPE)
    expect_equal(outputs_of(method, *given), outputs_of(twin, *given), what, tolerance=ROUNDING)


_SHAPE = replace(SHAPE, layers=3)
"""Three blocks have every kind of step; tracing time grows with depth."""

_BACKWARD = 1e-3


class Whole(nn.Module):
    """Encoder, method and reader as one module."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method, self.encoder = method, ToyEncoder(method.shape)
        self.reader = FixedReader(method.out_dim)

    def forward(
        self,
        states: Float[Tensor, "state batch token dim"],
        query: Float[Tensor, "batch query_dim"],
    ) -> dict[str, Tensor]:
        """All outputs by name."""
        return dict(outputs(run_on(self.method, states, query, self.encoder), self.reader))


@check
def compiled(subject: Subject) -> str:
    """torch.compile produces one graph with the same outputs and gradients."""
    _expect_compiler(subject.compiler)
    method = subject.jittered(_SHAPE).train()
    tokens, query = draw(_SHAPE)
    random = draws(method, tokens, query)
    whole = Whole(method.eval() if random else method)
    states = whole.encoder.states_from(tokens)
    plain, plain_grads = _outputs_and_grads(whole, whole, states, query)
    torch.compiler.reset()
    try:
        fast = torch.compile(whole, backend=subject.compiler, fullgraph=True)
        given, grads = _outputs_and_grads(whole, fast, states, query)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise CheckFailed(f"no single graph: {str(error).splitlines()[0]}") from error
    finally:
        torch.compiler.reset()
    for name, values in plain.items():
        expect_close(values, given[name], f"compiled, {name}")
    _expect_close_gradients(plain_grads, grads)
    return f"backend {subject.compiler}" + (", in evaluation: training is random" if random else "")


def _outputs_and_grads(
    whole: Whole,
    called: Callable[..., dict[str, Tensor]],
    states: Float[Tensor, "state batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    given = called(states, query)
    total = torch.stack([(values**2).mean() for values in given.values()]).sum()
    trained = {n: p for n, p in whole.method.named_parameters() if p.requires_grad}
    if not (trained and total.requires_grad):
        return given, {}
    grads = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    found = zip(trained, grads, strict=True)
    return given, {name: grad for name, grad in found if grad is not None}


def _expect_close_gradients(plain: dict[str, Tensor], fast: dict[str, Tensor]) -> None:
    """Compared as one vector, since a gradient that cancels to zero is only rounding error."""
    if plain.keys() != fast.keys():
        raise CheckFailed(f"compiled, other parameters get gradients: {plain.keys() ^ fast.keys()}")
    if plain:
        left, right = (torch.cat([g.flatten() for g in each.values()]) for each in (plain, fast))
        expect_close(left, right, "compiled, the gradients", tolerance=_BACKWARD)


def _expect_compiler(backend: str) -> None:
    try:
        from torch._dynamo.eval_frame import is_dynamo_supported
    except ImportError as error:
        raise CheckSkipped(f"torch.compile cannot be used here: {error}") from error
    if not is_dynamo_supported():
        raise CheckSkipped("torch.compile does not support this Python or system")
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise CheckSkipped("torch.compile needs a C++ compiler, and there is none here")


_SEEDS = (0, 1)
_EXAMPLES = 4


@check
def vmapped(subject: Subject) -> None:
    """Seeds trained in one pass by torch.func.vmap give what each gives alone."""
    budget = replace(BUDGET, steps=1, batch=len(_SEEDS) * _EXAMPLES)
    shared = materials("random", budget=budget)
    models = [_model(subject, shared, seed) for seed in _SEEDS]
    stack = Stack(models, shared)
    batch = shared.splits["train"].pick(torch.arange(budget.batch).view(len(_SEEDS), _EXAMPLES))
    one = batch.pick(torch.tensor(0))
    losses = stack.losses(batch)
    logits, _ = stack.outputs(one, shared.states(one.rows)(stack.taps))
    for seed, model in enumerate(models):
        loss = model.loss(batch.pick(torch.tensor(seed)), shared)
        expect_close(losses[seed], loss, f"seed {seed} of several, the loss")
        expect_close(logits[seed], model(one, shared)[0], f"seed {seed} of several, the answers")


def _model(subject: Subject, shared: Materials, seed: int) -> Model:
    model = build_model(subject.cls, subject.settings, shared, seed)
    jitter(model.fusion, seed)
    return model.eval()
