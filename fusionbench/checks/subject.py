"""The method under check: how it is built, run, and brought away from a start that hides much."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.encoder import Encoder
from fusionbench.api.fusion import Method
from fusionbench.api.types import Fused, StackShape
from fusionbench.checks.reading import READER, FixedReader, reader_for
from fusionbench.checks.toy import ToyEncoder, draw
from fusionbench.harness.model import own_settings
from fusionbench.harness.stepping import fuse
from fusionbench.records.cell import Setting

SHAPE = StackShape(layers=7, dim=16, grid=(4, 4), prefix=1, query_dim=6, reader=READER)
"""Deep enough for papers' layers to stay apart; an even square grid, which some methods need."""
ANSWER = "the decoder's answer"

TRACER = "aot_eager"
"""Traces forward and backward; `inductor` also writes kernels, which takes minutes for all."""

Outputs = Mapping[str, Float[Tensor, "batch *rest"]]
"""All that reaches the reader or the answer, by name."""

_JITTER = 0.2


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A class with settings."""

    name: str
    cls: type[Method]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the registration declares; empty for a bare class."""
    compiler: str = TRACER
    """Backend of `torch.compile`."""

    def build(self, shape: StackShape = SHAPE, *, seed: int = 0) -> Method:
        """A new method; the seed draws its initial weights."""
        constructor: type = self.cls
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return constructor(shape, **own_settings(self.settings))

    def jittered(self, shape: StackShape = SHAPE, *, seed: int = 0) -> Method:
        """One whose weights have all moved: a gate that starts at zero hides what lies behind."""
        method = self.build(shape, seed=seed)
        rng = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in method.parameters():
                noise = torch.randn(parameter.shape, generator=rng)
                parameter.add_(_JITTER * noise.to(parameter.dtype))
        return method


def run(
    method: Method,
    tokens: Float[Tensor, "batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Fused:
    """The method as the engine runs it, on the toy encoder's states of these `hs[0]`."""
    encoder = ToyEncoder(method.shape).to(tokens.dtype)
    return run_on(method, encoder.states_from(tokens), query, encoder)


def run_on(
    method: Method,
    states: Float[Tensor, "state batch token dim"],
    query: Float[Tensor, "batch query_dim"],
    encoder: Encoder,
) -> Fused:
    """The method on these `hs[0..L]`."""
    return fuse(
        method,
        lambda taps: torch.stack([states[list(tap)].mean(dim=0) for tap in taps]),
        query,
        encoder,
    )


def run_drawn(method: Method, *, batch: int = 3, seed: int = 1) -> Fused:
    """The method on random states."""
    return run(method, *draw(method.shape, batch=batch, seed=seed))


def told(
    method: Method,
    tokens: Float[Tensor, "batch token dim"],
    query: Float[Tensor, "batch query_dim"],
) -> Outputs:
    """What the method gives, worked out at once: patches of the reader run when it is read."""
    return dict(outputs(run(method, tokens, query)))


def outputs(
    fused: Fused, reader: FixedReader | None = None
) -> Iterator[tuple[str, Float[Tensor, "batch *rest"]]]:
    """All that reaches the reader or the answer, by name; the batch is the first axis.

    Where a method reaches into the reader's layers, also what a decoder answers: `reader`, or one
    that is made for it.
    """
    yield "tokens", fused.tokens
    if fused.after_projector is not None:
        # It has no parameters and takes tokens of any width: the projector can be left out.
        yield "tokens after the projector", fused.after_projector(fused.tokens)
    if fused.summary is not None:
        yield "summary", fused.summary
    for number, injection in enumerate(fused.injections):
        yield f"injection {number}", injection.values
    if fused.reaches_inside:
        yield ANSWER, (reader or reader_for(fused)).answer_to(fused)


def without_query(shape: StackShape) -> StackShape:
    """The same encoder where no question is given."""
    return replace(shape, query_dim=0)
