"""torch.compile: one graph without breaks, the same outputs and gradients."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusionbench.api.fusion import Method
from fusionbench.checks.compare import expect_close
from fusionbench.checks.outcome import CheckFailed, CheckSkipped
from fusionbench.checks.reading import FixedReader
from fusionbench.checks.subject import SHAPE, Subject, outputs, run_on
from fusionbench.checks.suite import check
from fusionbench.checks.toy import ToyEncoder, draw

_SHAPE = replace(SHAPE, layers=3)
"""Tracing time follows depth; every kind of step is there with three blocks."""

_BACKWARD = 1e-3


class Whole(nn.Module):
    """The method with all that the engine does around it."""

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
    """torch.compile makes one graph of it, with the same outputs and gradients."""
    _expect_compiler(subject.compiler)
    whole = Whole(subject.jittered(_SHAPE).train())
    tokens, query = draw(_SHAPE)
    states = whole.encoder.states_from(tokens)
    plain, plain_grads = _outputs_and_grads(whole, whole, states, query)
    torch._dynamo.reset()
    try:
        fast = torch.compile(whole, backend=subject.compiler, fullgraph=True)
        given, grads = _outputs_and_grads(whole, fast, states, query)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise CheckFailed(f"no single graph: {str(error).splitlines()[0]}") from error
    finally:
        torch._dynamo.reset()
    for name, values in plain.items():
        expect_close(values, given[name], f"compiled, {name}")
    _expect_close_gradients(plain_grads, grads)
    return f"backend {subject.compiler}"


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
    """All together: what cancels out in one of them is rounding alone."""
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
