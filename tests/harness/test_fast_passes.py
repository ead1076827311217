"""Fast paths of a pass against the plain one: in double precision, and as one compiled graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_passes import BUDGET, KINDS, in_double, named, shared_by

from fusionbench.api.fusion import InEncoderFusion
from fusionbench.api.types import Fused
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember, train_together
from fusionbench.harness.stack import Stack
from fusionbench.harness.train import autocast, train

RUNS = [PassMember(seed=seed, lr=3e-3) for seed in (0, 1)]


class OneGate(InEncoderFusion):
    """Writes once, through a gate, and needs one more block."""

    def __init__(self, shape):
        super().__init__(shape)
        self.depth = 2
        self.gate = torch.nn.Linear(shape.dim, shape.dim)

    def start(self, tokens, query):
        return query

    def after_block(self, block, tokens, state):
        written = tokens + torch.tanh(self.gate(tokens)) if block == 1 else tokens
        return written, state

    def finish(self, tokens, state):
        return Fused(tokens=self.patches(tokens))


def as_double(monkeypatch):
    """Nothing is rounded to single precision: not the logits, and no loss in the log."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


@pytest.mark.parametrize("name", [*KINDS, "mol-hybrid"])
def test_a_pass_and_the_loop_are_the_same_arithmetic(name, monkeypatch):
    # In float32 they drift apart by rounding; a difference of method would not vanish here.
    method, settings = named(name)
    shared = in_double(shared_by(method, settings))
    shared.answers = shared.answers.double()
    as_double(monkeypatch)
    alone, together = (
        [build_model(method, settings, shared, run.seed).double() for run in RUNS] for _ in range(2)
    )
    for model, run in zip(alone, RUNS, strict=True):
        train(model, shared, run.seed, run.lr)
    train_together(together, shared, RUNS)
    for one, other in zip(alone, together, strict=True):
        theirs = dict(other.named_parameters())
        for key, value in one.named_parameters():
            torch.testing.assert_close(value, theirs[key], rtol=1e-9, atol=1e-9)


def losses(method, settings, *, compiled, precision="fp32"):
    shared = shared_by(method, settings, replace(BUDGET, steps=4, precision=precision))
    shared.compiled = compiled
    models = [build_model(method, settings, shared, run.seed) for run in RUNS]
    return np.array([log.losses for log in train_together(models, shared, RUNS)])


@pytest.mark.parametrize(
    ("name", "backend"),
    [("one_gate", "aot_eager"), *((name, "aot_eager") for name in KINDS), ("one_gate", "inductor")],
)
@pytest.mark.slow
def test_a_compiled_step_trains_as_the_plain_one(name, backend):
    method, settings = (OneGate, {}) if name == "one_gate" else named(name)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = losses(method, settings, compiled=backend)
    # Else it ran as it is, or in pieces, and says nothing about a compiled step.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert np.abs(found - losses(method, settings, compiled="")).max() <= 1e-5


@pytest.mark.slow
def test_a_compiled_step_in_bfloat16_stays_near_a_reference_in_double_precision():
    torch._dynamo.reset()
    half = shared_by(OneGate, {}, replace(BUDGET, precision="bf16"))
    half.compiled = "aot_eager"
    models = [build_model(OneGate, {}, half, run.seed) for run in RUNS]
    with autocast(half):
        rows = torch.arange(32).reshape(2, 16)
        found = Stack(models, half, fast=True).losses(half.splits["train"].pick(rows))
    exact = in_double(shared_by(OneGate, {}))
    for run, model in enumerate(models):
        alone = model.double().loss(exact.splits["train"].pick(rows[run]), exact)
        assert found[run].item() == pytest.approx(alone.item(), abs=0.02)


def test_a_step_that_no_compiler_takes_runs_as_it_is_and_warns():
    torch._dynamo.reset()

    def refuses(graph, inputs):
        raise NotImplementedError("no such card")

    torch._dynamo.register_backend(refuses, name="refuses")
    method, settings = named("scalar_mix")
    with pytest.warns(UserWarning, match="not compiled"):
        found = losses(method, settings, compiled="refuses")
    assert (found == losses(method, settings, compiled="")).all()
