"""All runs of a pass scored on shared batches: the same as one after the other."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_cells import BUDGET, KINDS, _OneLayer, in_double, named, run_cell, shared_by, spec

from fusionbench.api.types import Fused
from fusionbench.harness import passes as batched_cell
from fusionbench.harness.cell import PassCell, Tuned
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import (
    PassMember,
    evaluate_all,
    evaluate_together,
    run_pass,
    train_together,
)
from fusionbench.harness.stack import Stack
from fusionbench.harness.train import autocast, evaluate

RUNS = [PassMember(seed=seed, lr=1e-2) for seed in (0, 1, 2)]
MORE = ("mol-hybrid", "tgif-leaky", "mema[question=shuffled]")
ALWAYS = ("scalar_mix", "mema", "lsf_internal_modular", "mol-hybrid")
"""One of each way through the code; the others with `-m slow`."""
# The test split has 60 examples: three batches of 16, and one of 12.
BATCH = 16


def trained(name, budget=BUDGET):
    method, settings = named(name)
    shared = shared_by(method, settings, budget)
    models = [build_model(method, settings, shared, run.seed) for run in RUNS]
    train_together(models, shared, RUNS)
    return shared, models


def members(seeds=(0, 1), wanted=(0, 1), lr=1e-2):
    tuned = Tuned(lr=lr, scores={})
    return [PassCell(spec=spec("toy", seed), tuned=tuned, wanted=seed in wanted) for seed in seeds]


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow)
        for name in (*KINDS, *MORE)
    ],
)
def test_scores_and_traces_are_those_of_each_model_alone(name):
    shared, models = trained(name)
    found, note = evaluate_all(models, shared, "test", BATCH)
    assert not note
    for model, (scores, trace, *facts) in zip(models, found, strict=True):
        expected, alone, *same = evaluate(model, shared, "test", BATCH)
        assert facts == same and min(facts) >= 1
        assert np.array_equal(scores, expected) and len(scores) == 60
        assert set(trace) == set(alone)
        for key, values in alone.items():
            assert trace[key] == pytest.approx(values, abs=2e-6)
    assert len({scores.tobytes() for scores, *_ in found}) > 1  # else any run would do for all


def test_each_batch_is_read_once_for_all_runs_and_holds_their_share(monkeypatch):
    shared, models = trained("scalar_mix")
    read, states = [], shared.states
    monkeypatch.setattr(shared, "states", lambda rows: read.append(len(rows)) or states(rows))
    evaluate_together(models, shared, "test", 3 * 25)
    # The last is the few examples on which each of the three is compared with itself alone.
    assert sorted(read) == [10, 16, 16, 16, 25, 25]
    read.clear()
    evaluate_together(models, shared, "test", 3)  # a training batch has fitted, and does here
    assert sorted(read) == [12, *[16] * 6]


@pytest.mark.thorough
def test_batches_that_are_filled_up_for_a_compiled_block_say_the_same():
    shared, models = trained("mema")
    for model in models:
        model.eval()
    stack, batch = Stack(models, shared), shared.splits["test"].pick(torch.arange(5))
    sizes, block = [], shared.encoder.block
    shared.encoder.block = lambda i, tokens: sizes.append(len(tokens)) or block(i, tokens)
    hidden = shared.states(batch.rows)(stack.taps)
    with torch.no_grad():
        usual, trace = stack.outputs(batch, hidden)
        filled, other = stack.outputs(batch, hidden, room=16)
    assert set(sizes) == {3 * 5, 3 * 16}
    torch.testing.assert_close(filled, usual)
    torch.testing.assert_close(other, trace)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["scalar_mix", "mema"])
def test_logits_in_bfloat16_stay_near_those_in_double_precision(name):
    shared, models = trained(name, replace(BUDGET, precision="bf16"))
    batch = shared.splits["test"].pick(torch.arange(20))
    with torch.no_grad():
        for model in models:
            model.eval()
        with autocast(shared):
            stack = Stack(models, shared)
            found, _ = stack.outputs(batch, shared.states(batch.rows)(stack.taps))
        exact = in_double(shared_by(*named(name)))
        for run, model in enumerate(models):
            expected, _ = model.double()(batch, exact)
            assert (found[run] - expected).norm() <= 0.02 * expected.norm()


class LooksWhenItIsTrained(_OneLayer):
    """Safe under vmap in training; afterwards it branches on a value."""

    def forward(self, hidden, query):
        tokens = self.patches(hidden[0]) + self.gate
        if not self.training and self.gate > math.inf:
            tokens = -tokens
        return Fused(tokens=tokens)


class KeepsANumberForLater(_OneLayer):
    """Uses a plain number of its seed when it is trained: the stack knows the first run's only."""

    def __init__(self, shape):
        super().__init__(shape)
        self.size = float(torch.rand(()))

    def forward(self, hidden, query):
        tokens = self.patches(hidden[0])
        shift = self.gate if self.training else self.size * tokens.roll(1, dims=1)
        return Fused(tokens=tokens + shift)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (LooksWhenItIsTrained, "RuntimeError"),
        (KeepsANumberForLater, "logits of a trained run differ"),
    ],
)
def test_what_cannot_be_scored_together_is_scored_alone_and_says_why(method, words):
    shared = shared_by(method, {})
    for member, (record, scores) in zip(
        members(), run_pass(method, shared, members(), eval_batch=BATCH), strict=True
    ):
        tuned = member.tuned
        alone, expected = run_cell(member.spec, method, shared, tuned=tuned, eval_batch=BATCH)
        assert np.array_equal(scores, expected) and record.score == alone.score
        assert "evaluated alone, not in a pass of 2" in record.notes[0] and words in record.notes[0]


def test_a_pass_that_finds_no_memory_is_scored_one_by_one(monkeypatch):
    shared, models = trained("scalar_mix")

    def full(self, *given, **named):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Stack, "outputs", full)
    found, note = evaluate_all(models, shared, "test", BATCH)
    assert "no room" in note
    expected = [evaluate(model, shared, "test", BATCH)[0] for model in models]
    assert all(np.array_equal(one[0], two) for one, two in zip(found, expected, strict=True))


@pytest.mark.thorough
def test_a_run_that_diverged_leaves_the_scores_of_the_others_alone():
    method, settings = named("mema")
    shared = shared_by(method, settings)
    wild = members(seeds=(1,), wanted=(1,), lr=math.inf)
    first, broken, last = run_pass(
        method, shared, [*members((0,)), *wild, *members((2,), (2,))], eval_batch=BATCH
    )
    assert isinstance(broken, FloatingPointError)
    for seed, (record, scores) in ((0, first), (2, last)):
        (one,) = members((seed,), (seed,))
        _, expected = run_cell(one.spec, method, shared, tuned=one.tuned, eval_batch=BATCH)
        assert np.array_equal(scores, expected) and not record.notes


@pytest.mark.thorough
def test_what_is_missing_changes_no_bit_of_a_pass():
    method, settings = named("mema")
    shared = shared_by(method, settings)
    whole = run_pass(method, shared, members(), eval_batch=BATCH)
    nothing, alone = run_pass(method, shared, members(wanted=(1,)), eval_batch=BATCH)
    assert nothing is None
    assert alone[0].trace == whole[1][0].trace and alone[1].tobytes() == whole[1][1].tobytes()


def test_tuning_runs_of_a_pass_are_scored_on_val(monkeypatch):
    seen, usual = [], batched_cell.evaluate_all

    def watched(models, materials, split, batch):
        seen.append(split)
        return usual(models, materials, split, batch)

    monkeypatch.setattr(batched_cell, "evaluate_all", watched)
    method, settings = named("scalar_mix")
    tuning = [replace(one, spec=replace(one.spec, stage="tune")) for one in members()]
    found = run_pass(method, shared_by(method, settings), tuning, eval_batch=BATCH)
    assert seen == ["val"] and {record.examples for record, _ in found} == {20}
