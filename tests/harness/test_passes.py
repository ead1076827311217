"""All seeds and learning rates in one pass: the same as one after the other."""

import math
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy_cells import (
    BUDGET,
    KINDS,
    MORE,
    _OneLayer,
    both_ways,
    in_double,
    materials,
    named,
    run_cell,
    shared_by,
    spec,
)
from toy_cells import BUDGET as FROZEN_BUDGET
from toy_encoder import ToyEncoder, draw

from fusionbench.api.fusion import InEncoderFusion
from fusionbench.api.modules import composed, sdpa
from fusionbench.api.types import Fused
from fusionbench.harness import stack
from fusionbench.harness.cell import PassCell, Tuned
from fusionbench.harness.frozen import Checkpointed, compile_blocks
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import (
    PassMember,
    clip_each,
    run_pass,
    train_together,
)
from fusionbench.harness.stack import NotEquivalent, Stack
from fusionbench.harness.train import autocast, train
from fusionbench.models.encoders.vit import ViT, ViTConfig
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.plugins import load_method

ALWAYS = ("scalar_mix", "mema", "lsf_internal_modular")
"""Behind, in and after the encoder; below, all kinds are compared in double precision."""


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow)
        for name in (*KINDS, *MORE)
    ],
)
def test_a_pass_equals_the_loop(name):
    expected, found, same = both_ways(name)
    for one, other in zip(expected, found, strict=True):
        assert np.abs(np.array(one.losses) - other.losses).max() <= 1e-5
        assert one.unmoved == other.unmoved
    assert same >= 0.999


def test_a_hard_choice_may_fall_otherwise_by_rounding_and_does_no_more():
    # MoL keeps its largest weights: at a tie, rounding decides for one patch of one step.
    expected, found, same = both_ways("mol-hybrid")
    for one, other in zip(expected, found, strict=True):
        assert np.abs(np.array(one.losses) - other.losses).max() <= 1e-4
    assert same >= 0.999


@pytest.mark.parametrize("name", ["scalar_mix", "mema"])
def test_bfloat16_in_a_pass_stays_near_a_reference_in_double_precision(name):
    method, settings = named(name)
    half = shared_by(method, settings, replace(BUDGET, precision="bf16"))
    models = [build_model(method, settings, half, seed) for seed in (0, 1)]
    batch = half.splits["train"].pick(torch.arange(32).reshape(2, 16))
    with autocast(half):
        found = Stack(models, half).losses(batch)
    exact = in_double(shared_by(method, settings))
    for run, model in enumerate(models):
        alone = model.double().loss(exact.splits["train"].pick(torch.arange(16) + 16 * run), exact)
        assert found[run].item() == pytest.approx(alone.item(), abs=0.02)


def test_attention_made_of_products_is_attention():
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    for looking in (None, mask):
        fused = sdpa(query, key, value, looking)
        with composed():
            torch.testing.assert_close(sdpa(query, key, value, looking), fused)


def test_each_run_is_clipped_by_its_own_norm():
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4, 5), torch.randn(3), torch.randn(3, 2)]
    gradients = [gradient * torch.tensor([0.01, 1.0, 9.0]).reshape(3, *[1] * (gradient.ndim - 1))
                 for gradient in gradients]  # fmt: skip
    expected = []
    for run in range(3):
        parameters = [torch.nn.Parameter(torch.zeros_like(g[run])) for g in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[run].clone()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        expected.append([p.grad for p in parameters])
    clip_each(gradients, 1.0)
    for run in range(3):
        for gradient, wanted in zip(gradients, expected[run], strict=True):
            torch.testing.assert_close(gradient[run], wanted)


def test_a_run_that_diverges_disturbs_no_other():
    method, settings = named("scalar_mix")
    shared = shared_by(method, settings)
    runs = [
        PassMember(seed=0, lr=3e-3),
        PassMember(seed=1, lr=math.inf),
        PassMember(seed=2, lr=3e-3),
    ]
    models = [build_model(method, settings, shared, run.seed) for run in runs]
    found = train_together(models, shared, runs)
    assert isinstance(found[1], FloatingPointError) and "learning rate inf" in str(found[1])
    for run in (0, 2):
        alone = train(build_model(method, settings, shared, run), shared, run, 3e-3)
        assert np.abs(np.array(alone.losses) - found[run].losses).max() <= 1e-5


class KeepsANumber(_OneLayer):
    """Draws a plain number from its seed: the stack knows tensors only."""

    def __init__(self, shape):
        super().__init__(shape)
        self.size = float(torch.rand(()))

    def forward(self, hidden, query):
        # Behind a gate that starts at zero: no loss of the first step can show it.
        tokens = self.patches(hidden[0])
        return Fused(tokens=tokens + self.gate * self.size * tokens.roll(1, dims=1))


class LooksAtValues(_OneLayer):
    """Branches on a value: not safe under vmap."""

    def forward(self, hidden, query):
        tokens = self.patches(hidden[0])
        return Fused(tokens=tokens + self.gate if self.gate > -1 else tokens)


class ReplacesABuffer(_OneLayer):
    """Its running mean is a new tensor after each pass, which a functional call drops."""

    def __init__(self, shape):
        super().__init__(shape)
        self.register_buffer("mean", torch.zeros(shape.dim))

    def forward(self, hidden, query):
        tokens = self.patches(hidden[0])
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * tokens.detach().mean((0, 1))
        return Fused(tokens=tokens + self.gate * self.mean)


class Drops(_OneLayer):
    """Draws at random in training: not safe under vmap."""

    def forward(self, hidden, query):
        tokens = self.patches(hidden[0])
        return Fused(tokens=F.dropout(tokens, 0.5, self.training) + self.gate)


def test_in_the_loop_a_run_that_is_not_wanted_changes_no_stream_of_the_next():
    shared, tuned = shared_by(Drops, {}), Tuned(lr=3e-3, scores={})
    members = [PassCell(spec=spec("toy", seed), tuned=tuned) for seed in (0, 1, 2)]
    every = run_pass(Drops, shared, members, eval_batch=16)
    fewer = [replace(one, wanted=one.spec.seed == 2) for one in members]
    torch.rand(7)
    last = run_pass(Drops, shared, fewer, eval_batch=16)
    assert last[:2] == [None, None] and last[2][1].tobytes() == every[2][1].tobytes()
    assert last[2][0].loss == every[2][0].loss != every[1][0].loss


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (KeepsANumber, "gradient of fusion.gate"),
        (LooksAtValues, "RuntimeError"),
        (ReplacesABuffer, "buffer fusion.mean"),
    ],
)
def test_what_cannot_run_together_runs_alone_and_says_why(method, words):
    shared = shared_by(method, {})
    models = [build_model(method, {}, shared, seed) for seed in (0, 1)]
    runs = [PassMember(seed=seed, lr=3e-3) for seed in (0, 1)]
    with pytest.raises(NotEquivalent, match=words):
        train_together(models, shared, runs)
    tuned = Tuned(lr=3e-3, scores={})
    members = [PassCell(spec=spec("toy", seed), tuned=tuned) for seed in (0, 1)]
    for member, (record, scores) in zip(
        members, run_pass(method, shared, members, eval_batch=16), strict=True
    ):
        alone, expected = run_cell(member.spec, method, shared, tuned=tuned, eval_batch=16)
        assert scores.tobytes() == expected.tobytes() and record.loss == alone.loss
        assert "trained alone, not in a pass of 2" in record.notes[0] and words in record.notes[0]


@pytest.mark.parametrize(("method", "times"), [("scalar_mix", 2), (KeepsANumber, 4)])
def test_a_pass_that_was_compared_once_is_not_compared_again(method, times, monkeypatch):
    method, settings = named(method) if isinstance(method, str) else (method, {})
    shared = shared_by(method, settings)
    members = [
        PassCell(spec=spec("toy", seed, **settings), tuned=Tuned(lr=3e-3, scores={}))
        for seed in (0, 1)
    ]
    compared = []
    check = stack._difference
    monkeypatch.setattr(stack, "_PASSED", WeakKeyDictionary())
    monkeypatch.setattr(stack, "_difference", lambda *g: compared.append(1) or check(*g))
    first, again = (run_pass(method, shared, members, eval_batch=16) for _ in range(2))
    # One comparison a run, of the first pass alone; a pass that fails is compared again.
    assert len(compared) == times
    for (one, scores), (other, same) in zip(first, again, strict=True):
        assert scores.tobytes() == same.tobytes() and one.loss == other.loss
    other = [replace(one, spec=replace(one.spec, budget=replace(one.spec.budget, steps=3)))
             for one in members]  # fmt: skip
    run_pass(method, shared, other, eval_batch=16)
    assert len(compared) == times + 2


def test_a_run_that_only_completes_the_pass_is_not_scored():
    method, settings = named("scalar_mix")
    tuned = Tuned(lr=3e-3, scores={})
    members = [PassCell(spec=spec("toy", seed), tuned=tuned, wanted=seed == 1) for seed in (0, 1)]
    found = run_pass(method, shared_by(method, settings), members, eval_batch=16)
    assert found[0] is None and found[1][0].seconds > 0 and not found[1][0].notes


# Fast paths of a pass against the plain one: in double precision, and as one compiled graph.

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


@pytest.mark.few(2)
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
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    found = losses(method, settings, compiled=backend)
    # Else it ran as it is, or in pieces, and says nothing about a compiled step.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert np.abs(found - losses(method, settings, compiled="")).max() <= 1e-5


@pytest.mark.slow
def test_a_compiled_step_in_bfloat16_stays_near_a_reference_in_double_precision():
    torch.compiler.reset()
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


@pytest.mark.thorough
def test_a_step_that_no_compiler_takes_runs_as_it_is_and_warns():
    torch.compiler.reset()

    def refuses(graph, inputs):
        raise NotImplementedError("no such card")

    torch._dynamo.register_backend(refuses, name="refuses")
    method, settings = named("scalar_mix")
    with pytest.warns(UserWarning, match="not compiled"):
        found = losses(method, settings, compiled="refuses")
    assert (found == losses(method, settings, compiled="")).all()


# Ways to run a frozen encoder that change its speed and memory, and nothing else.

METHODS = ("mema", "dla")


def frozen_losses(name, change=lambda encoder: encoder):
    card = read_catalog().methods[name]
    shared = materials([(0,), (1,)], FROZEN_BUDGET)
    shared.encoder = change(shared.encoder)
    model = build_model(load_method(card), card.settings, shared, 0)
    return train(model, shared, 0, 3e-3).losses


def compiled(encoder):
    # The graph is captured and differentiated as for a GPU; its code is not generated here.
    torch.compiler.reset()
    assert compile_blocks(encoder, backend="aot_eager")
    return encoder


@pytest.mark.few(1)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("change", [Checkpointed, compiled])
def test_the_training_is_the_same(name, change):
    plain = frozen_losses(name)
    assert frozen_losses(name, change) == pytest.approx(plain, abs=1e-5)


@pytest.mark.thorough
def test_blocks_of_one_encoder_share_one_graph():
    encoder = ViT(ViTConfig(layers=6, dim=16, heads=2, patch=4, grid=2, size=8, mlp=32))
    encoder.freeze()
    torch.compiler.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_blocks(encoder, backend=count)
    encoder.hidden_states(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert len(graphs) == 1


def kept(encoder):
    """Numbers that wait for the way back through one block, its weights apart."""
    saved = []
    tokens, _ = draw()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        encoder.block(1, tokens.clone().requires_grad_())
    weights = {id(p) for p in encoder.parameters()}
    return sum(x.numel() for x in saved if id(x) not in weights)


def test_a_checkpointed_block_keeps_no_more_than_its_input():
    assert kept(Checkpointed(ToyEncoder())) <= draw()[0].numel() < kept(ToyEncoder())
