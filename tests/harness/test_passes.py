"""All seeds and learning rates in one pass: the same as one after the other."""

import math
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from toy_cells import run_cell, spec
from toy_passes import BUDGET, KINDS, MORE, _OneLayer, both_ways, in_double, named, shared_by

from fusionbench.api.modules import composed, sdpa
from fusionbench.api.types import Fused
from fusionbench.harness import passes
from fusionbench.harness.cell import PassCell, Tuned
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import (
    NotEquivalent,
    PassMember,
    clip_each,
    run_pass,
    train_together,
)
from fusionbench.harness.stack import Stack
from fusionbench.harness.train import autocast, train

ALWAYS = ("scalar_mix", "mema", "lsf_internal_modular")
"""Behind, in and after the encoder; test_fast_passes.py compares all kinds in double precision."""


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


@pytest.mark.parametrize(
    ("method", "words"),
    [(KeepsANumber, "gradient of fusion.gate"), (LooksAtValues, "RuntimeError")],
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
    check = passes._difference
    monkeypatch.setattr(passes, "_PASSED", WeakKeyDictionary())
    monkeypatch.setattr(passes, "_difference", lambda *g: compared.append(1) or check(*g))
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
