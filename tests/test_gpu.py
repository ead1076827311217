"""What runs otherwise on a GPU: passes of seeds, compiled steps, hidden states on the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_cells import BUDGET, KINDS, MORE, RUNS, both_ways, in_double, named, shared_by

from fusionbench.harness.cell import train_model
from fusionbench.harness.frozen import compile_blocks
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember, evaluate_together, train_all, train_together
from fusionbench.harness.stack import Stack
from fusionbench.harness.train import autocast, evaluate, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize("name", [*KINDS, *MORE])
def test_a_pass_equals_the_loop_on_a_gpu(name):
    expected, found, same = both_ways(name, device="cuda")
    for one, other in zip(expected, found, strict=True):
        assert np.abs(np.array(one.losses) - other.losses).max() <= 1e-5
        assert one.unmoved == other.unmoved
    assert same >= 0.999


@pytest.mark.parametrize("name", [*KINDS, *MORE])
def test_a_pass_trains_in_bfloat16_on_a_gpu(name):
    expected, found, same = both_ways(name, replace(BUDGET, precision="bf16"), device="cuda")
    for one, other in zip(expected, found, strict=True):
        assert np.abs(np.array(one.losses) - other.losses).max() <= 0.05
    assert same >= 0.95


@pytest.mark.parametrize("name", ["scalar_mix", "mema", "alf"])
def test_bfloat16_on_a_gpu_stays_near_a_reference_in_double_precision(name):
    method, settings = named(name)
    half = shared_by(method, settings, replace(BUDGET, precision="bf16"), "cuda")
    models = [build_model(method, settings, half, seed) for seed in (0, 1)]
    batch = half.splits["train"].pick(torch.arange(32, device="cuda").reshape(2, 16))
    with autocast(half):
        found = Stack(models, half).losses(batch)
    exact = in_double(shared_by(method, settings, device="cuda"))
    for run, model in enumerate(models):
        picked = exact.splits["train"].pick(torch.arange(16, device="cuda") + 16 * run)
        alone = model.double().loss(picked, exact)
        assert found[run].item() == pytest.approx(alone.item(), abs=0.02)


@pytest.mark.parametrize("name", ["scalar_mix", "mema"])
def test_training_on_a_gpu_ends_where_training_on_a_cpu_does(name):
    method, settings = named(name)
    ends = []
    for device in ("cpu", "cuda"):
        shared = shared_by(method, settings, device=device)
        model = build_model(method, settings, shared, 0)
        ends.append(train(model, shared, 0, 3e-3).losses)
    assert ends[1] == pytest.approx(ends[0], abs=1e-4)


def test_compiled_steps_equal_plain_ones():
    method, settings = named("mema")
    losses = []
    for compiled in ("", "default"):
        torch.compiler.reset()
        shared = shared_by(method, settings, device="cuda")
        shared.compiled = compiled
        if compiled:
            compile_blocks(shared.encoder)
        models = [build_model(method, settings, shared, run.seed) for run in RUNS]
        losses.append([log.losses for log in train_together(models, shared, RUNS)])
    assert np.abs(np.array(losses[1]) - losses[0]).max() <= 1e-4


def test_a_pass_scores_on_a_gpu_as_one_after_the_other_does():
    method, settings = named("mema")
    shared = shared_by(method, settings, device="cuda")
    models = [build_model(method, settings, shared, seed) for seed in range(3)]
    together = evaluate_together(models, shared, "test", 16)
    for model, found in zip(models, together, strict=True):
        assert (evaluate(model, shared, "test", 16)[0] == found[0]).all()


def test_hidden_states_that_fit_lie_on_the_gpu():
    method, settings = named("scalar_mix")
    shared = shared_by(method, settings, device="cuda")
    taps = build_model(method, settings, shared, 0).fusion.taps
    assert shared.resident(taps)


RIDGE = replace(
    BUDGET, reader="ridge", resample="distinct", draw=60, vector_lr=0.1, steps=6, batch=16
)


@pytest.mark.parametrize("name", ["penultimate", "scalar_mix", "mema", "qwen3vl_deepstack"])
def test_the_ridge_reader_gives_the_same_on_both_devices_alone_and_in_a_pass(name):
    method, settings = named(name)
    found = []
    for device in ("cpu", "cuda"):
        shared = shared_by(method, settings, RIDGE, device)
        alone = build_model(method, settings, shared, 0)
        log, fit = train_model(alone, shared, 0, 3e-3, 64)
        models = [build_model(method, settings, shared, seed) for seed in (0, 1)]
        runs = [PassMember(seed=seed, lr=3e-3) for seed in (0, 1)]
        logs, fits = train_all(models, shared, runs, 64)
        assert logs[0].losses == pytest.approx(log.losses, abs=1e-3)
        assert fits[0]["error"] == pytest.approx(fit["error"], abs=1e-3)
        scores = evaluate_together(models, shared, "test", 64)[0][0]
        found.append((fit["error"], scores))
    (cpu_error, cpu), (gpu_error, gpu) = found
    assert gpu_error == pytest.approx(cpu_error, abs=1e-2)
    assert (cpu == gpu).mean() >= 0.95
