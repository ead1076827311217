"""Replayed steps: the formulation on a CPU. What CUDA records is tested in `test_gpu.py`."""

import warnings
from dataclasses import replace

import pytest
import torch
from toy_passes import BUDGET, KINDS, RUNS, in_double, named, shared_by

from fusionbench.harness import passes as batched
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import train_together
from fusionbench.harness.replay import AS_IT_IS, Replayed


class OnCpu:
    """Repeats a step on the same tensors and writes over what it gave, as a graph does."""

    def __init__(self, *_):
        self.ran = self.recorded = 0

    def number(self, value):
        return torch.full((), value, dtype=torch.float64)

    def run(self, step, given):
        self.ran += 1
        return step(*given)

    def record(self, step, inputs):
        self.recorded += 1
        place = None

        def replay():
            nonlocal place
            found = step(*inputs)
            place = found if place is None else place.copy_(found)
            return place

        return replay


class Refuses(OnCpu):
    def record(self, step, inputs):
        step(*inputs[:1], None)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_a_step_is_recorded_once_and_gets_the_inputs_of_each_call():
    recorder = OnCpu()
    step = Replayed(lambda x, share: x * share, recorder)
    given = [(torch.tensor([float(at)]), 0.5 * at) for at in range(8)]
    found = [step(*one).clone() for one in given]
    assert [one.item() for one in found] == [0.5 * at * at for at in range(8)]
    assert (recorder.ran, recorder.recorded) == (AS_IT_IS, 1)


def test_what_it_gives_back_is_written_over_by_the_next_call():
    step = Replayed(lambda x: x + 1, OnCpu())
    *_, one, other = [step(torch.tensor([float(at)])) for at in range(AS_IT_IS + 3)]
    assert one is other


def test_inputs_of_another_shape_are_an_error_and_not_spread():
    step = Replayed(lambda x: x + 1, OnCpu())
    for _ in range(AS_IT_IS + 1):
        step(torch.zeros(2, 3))
    with pytest.raises(RuntimeError):
        step(torch.zeros(2, 4))


def test_a_step_that_cannot_be_recorded_runs_as_it_is_and_warns_once():
    recorder = Refuses()
    step = Replayed(lambda x, y: x + 1, recorder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [step(torch.tensor([float(at)]), 0.0).item() for at in range(8)]
    assert found == [at + 1.0 for at in range(8)]
    assert [str(one.message) for one in said] == [
        "not recorded: operation not permitted when stream is capturing"
    ]
    assert recorder.ran == 8


def trained(name, monkeypatch, recorder=None):
    """Losses, unmoved parameters and weights of a pass, in double precision."""
    method, settings = named(name)
    shared = in_double(shared_by(method, settings, BUDGET))
    shared.answers = shared.answers.double()
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    if recorder is not None:
        shared.replayed = True
        monkeypatch.setattr(batched, "CudaGraphs", lambda device: recorder)
    models = [build_model(method, settings, shared, run.seed).double() for run in RUNS]
    logs = train_together(models, shared, RUNS)
    weights = [dict(model.named_parameters()) for model in models]
    return [(log.losses, log.unmoved) for log in logs], weights


@pytest.mark.parametrize("name", KINDS)
def test_a_replayed_pass_is_the_same_arithmetic(name, monkeypatch):
    recorder = OnCpu()
    expected, weights = trained(name, monkeypatch)
    found, moved = trained(name, monkeypatch, recorder)
    assert recorder.recorded == 1 and BUDGET.steps > 2 * AS_IT_IS
    assert found == expected
    for one, other in zip(weights, moved, strict=True):
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["scalar_mix", "mema"])
def test_a_replayed_pass_in_bfloat16_stays_near_a_reference_in_double_precision(name, monkeypatch):
    method, settings = named(name)
    half = shared_by(method, settings, replace(BUDGET, precision="bf16"))
    half.replayed = True
    monkeypatch.setattr(batched, "CudaGraphs", OnCpu)
    models = [build_model(method, settings, half, run.seed) for run in RUNS]
    found = [log.losses for log in train_together(models, half, RUNS)]
    monkeypatch.undo()
    exact = [losses for losses, _ in trained(name, monkeypatch)[0]]
    # The first steps: from there on the two trainings go their own ways.
    for one, other in zip(found, exact, strict=True):
        assert one[: AS_IT_IS + 2] == pytest.approx(other[: AS_IT_IS + 2], abs=0.02)


def after_one_step(left):
    """Weights after a step that found these gradients."""
    method, settings = named("scalar_mix")
    shared = shared_by(method, settings)
    stack = batched.Stack([build_model(method, settings, shared, 0)], shared)
    step = batched._step(stack, batched._Optimisers(stack, shared, RUNS[:1]), shared)
    batch = shared.splits["train"].pick(torch.arange(16)[None])
    hidden = shared.states(batch.rows.flatten())(stack.taps)
    for parameter in stack.parameters.values():
        parameter.grad = None if left is None else torch.full_like(parameter, left)
    step(batch.rows, batch.questions, batch.answers, hidden, 0.5)
    return stack.parameters


def test_gradients_of_a_recording_that_broke_off_are_dropped():
    clean, found = after_one_step(None), after_one_step(1e6)
    assert all((found[name] == value).all() for name, value in clean.items())
