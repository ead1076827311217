"""Cells with the ridge reader: alone and in a pass, with and without trainable parameters."""

from dataclasses import replace

import pytest
import torch
from toy_cells import BUDGET
from toy_passes import named, shared_by

from fusionbench.harness.cell import own_examples, train_model
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember, evaluate_together, train_all
from fusionbench.harness.train import drawn, evaluate

RIDGE = replace(
    BUDGET, reader="ridge", resample="distinct", draw=60, vector_lr=0.1, steps=6, batch=16
)
NAMES = (
    "penultimate", "scalar_mix", "dense_connector-efficient", "mema", "mema-readout",
    "lsf_internal_modular", "qwen3vl_deepstack",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_fits_and_scores_as_each_seed_alone(name):
    method, settings = named(name)
    shared = shared_by(method, settings, RIDGE)
    runs = [PassMember(seed=seed, lr=3e-3) for seed in (0, 1)]
    alone, together = (
        [build_model(method, settings, shared, run.seed) for run in runs] for _ in range(2)
    )
    expected = [train_model(m, shared, r.seed, r.lr, 64) for m, r in zip(alone, runs, strict=True)]
    logs, fits = train_all(together, shared, runs, 64)
    scored = evaluate_together(together, shared, "test", 64)
    for run, (log, fit) in enumerate(expected):
        assert logs[run].losses == pytest.approx(log.losses, abs=1e-4)
        assert {k: v for k, v in fits[run].items() if "kernel" in k} == {
            k: v for k, v in fit.items() if "kernel" in k
        }
        assert fits[run]["error"] == pytest.approx(fit["error"], abs=1e-4)
        same = evaluate(alone[run], shared, "test", 64)[0] == scored[run][0]
        assert same.mean() >= 0.98


def test_a_fusion_without_parameters_trains_nothing_and_one_with_parameters_moves():
    for name, trained in (("penultimate", False), ("scalar_mix", True)):
        method, settings = named(name)
        shared = shared_by(method, settings, RIDGE)
        model = build_model(method, settings, shared, 0)
        start = [p.detach().clone() for p in model.parameters()]
        log, fit = train_model(model, shared, 0, 3e-3, 64)
        assert bool(log.losses) == trained == ("kernel_before" in fit)
        moved = [not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True)]
        assert all(moved) and bool(moved) == trained


def test_a_decoder_keeps_its_layers_and_loses_its_classifier():
    method, settings = named("lsf_internal_modular")
    shared = shared_by(method, settings, RIDGE)
    model = build_model(method, settings, shared, 0)
    assert len(model.reader.layers) == 4
    assert not any("classify" in name or "embed" in name for name, _ in model.named_parameters())
    log, _ = train_model(model, shared, 0, 3e-3, 64)
    assert not log.unmoved


def test_seeds_draw_distinct_examples_and_differ():
    budget = replace(RIDGE, draw=40)
    first, second = (drawn("a task", seed, 100, budget) for seed in (0, 1))
    assert len(set(first)) == len(first) == 40
    assert set(first) != set(second)
    # A pool that is no larger than the draw still gives seeds that differ.
    assert len(drawn("a task", 0, 40, budget)) == 30


def test_the_drawn_examples_of_a_seed_are_those_that_it_trains_on():
    method, settings = named("scalar_mix")
    shared = shared_by(method, settings, RIDGE)
    batch = own_examples(shared, [0, 3])
    assert batch.rows.shape == (2, 60)
    pool = shared.splits["train"]
    rows = torch.from_numpy(drawn(shared.name, 3, len(pool), RIDGE))
    assert torch.equal(batch.rows[1], pool.rows[rows])


def test_weights_of_mixing_get_their_own_learning_rate():
    method, settings = named("scalar_mix")
    ends = []
    for rate in (0.0, 0.1):
        shared = shared_by(method, settings, replace(RIDGE, vector_lr=rate))
        model = build_model(method, settings, shared, 0)
        start = torch.cat([p.detach().flatten() for p in model.fusion.parameters()])
        train_model(model, shared, 0, 3e-3, 64)
        end = torch.cat([p.detach().flatten() for p in model.fusion.parameters()])
        ends.append(float((end - start).norm()))
    assert ends[1] > 5 * ends[0]
