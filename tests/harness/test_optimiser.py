"""Muon against its equations and PyTorch's, who is moved by what, a pass against the loop."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_passes import BUDGET, both_ways, named, shared_by

from fusionbench.api.errors import UserError
from fusionbench.harness.model import build_model
from fusionbench.harness.passes import PassMember, train_together
from fusionbench.harness.train import Muon, Optimisers, orthogonalised, train
from fusionbench.study.study import load_study

MUON = replace(BUDGET, optimiser="muon", vector_lr=5e-3)
RUNS = [PassMember(seed=seed, lr=lr) for lr in (0.02, 0.05) for seed in (0, 1)]


def _drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors(shape):
    matrix = _drawn(*shape)
    left, values, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ np.diag(values) @ right
    np.testing.assert_allclose(orthogonalised(matrix).numpy(), expected, atol=1e-5)
    assert ((values > 0.6) & (values < 1.3)).all()


def test_the_matrices_of_runs_are_orthogonalised_one_by_one():
    stacked = _drawn(3, 4, 7) * torch.tensor([0.01, 1.0, 100.0]).reshape(3, 1, 1)
    for matrix, found in zip(stacked, orthogonalised(stacked), strict=True):
        torch.testing.assert_close(found, orthogonalised(matrix))
    assert not orthogonalised(torch.zeros(2, 3)).any()


def test_it_is_the_muon_of_pytorch_up_to_the_rounding_of_its_bfloat16():
    ours, theirs = (torch.nn.Parameter(_drawn(8, 12)) for _ in range(2))
    start = ours.detach().clone()
    mine = Muon([{"params": [ours], "lr": 0.1, "weight_decay": 0.5}])
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.5, momentum=0.95, adjust_lr_fn="spectral_unclamped"
    )
    for step in range(6):
        ours.grad, theirs.grad = (_drawn(8, 12, seed=step + 1) for _ in range(2))
        mine.step()
        reference.step()
    apart = (ours - theirs).detach().norm() / (ours.detach() - start).norm()
    assert apart < 0.02


def test_a_repeated_input_moves_the_output_as_much_as_a_single_one():
    single, inputs = _drawn(4, 6), _drawn(5, 6, seed=1)
    moves = []
    for times in (1, 3):
        weight = torch.nn.Parameter(torch.zeros(4, 6 * times))
        weight.grad = single.repeat(1, times)
        Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}]).step()
        moves.append(inputs.repeat(1, times) @ weight.detach().T)
    torch.testing.assert_close(*moves)


@pytest.mark.parametrize("axes", [0, 1])
def test_matrices_go_to_muon_and_all_else_to_adamw_at_rates_of_their_own(axes):
    runs = (2,) * axes
    matrix, vector, number, kernel = (
        torch.zeros((*runs, *shape), requires_grad=True) for shape in [(3, 4), (4,), (), (2, 3, 3)]
    )
    adamw, muon = Optimisers([matrix, vector, number, kernel], MUON, 0.02, axes=axes).parts
    groups = {
        id(p): (type(part).__name__, group["peak"], group["weight_decay"])
        for part in (adamw, muon)
        for group in part.param_groups
        for p in group["params"]
    }
    decay = MUON.weight_decay
    assert groups[id(matrix)] == ("Muon", 0.02, decay)
    assert groups[id(vector)] == groups[id(number)] == ("AdamW", 5e-3, 0.0)
    assert groups[id(kernel)] == ("AdamW", 5e-3, decay)
    (plain,) = Optimisers([matrix, vector], BUDGET, 0.02, axes=axes).parts
    assert [group["peak"] for group in plain.param_groups] == [0.02, 0.02]


def test_a_share_of_the_schedule_scales_every_rate():
    weights = [torch.nn.Parameter(_drawn(3, 4)), torch.nn.Parameter(_drawn(4))]
    optimisers = Optimisers(weights, MUON, 0.02)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimisers.step(0.5)
    assert [part.param_groups[0]["lr"] for part in optimisers.parts] == [2.5e-3, 0.01]
    assert all(optimisers.moment(weight) is not None for weight in weights)


@pytest.mark.parametrize("name", ["penultimate", "scalar_mix", "mema", "dense_connector-sti"])
def test_a_pass_with_muon_equals_the_loop(name):
    expected, found, same = both_ways(name, MUON, RUNS)
    for one, other in zip(expected, found, strict=True):
        assert np.abs(np.array(one.losses) - other.losses).max() <= 1e-5
        assert one.unmoved == other.unmoved
    assert same >= 0.999


def test_a_run_that_diverges_under_muon_disturbs_no_other():
    method, settings = named("penultimate")
    shared = shared_by(method, settings, MUON)
    runs = [PassMember(seed=0, lr=0.02), PassMember(seed=1, lr=math.inf)]
    found = train_together(
        [build_model(method, settings, shared, run.seed) for run in runs], shared, runs
    )
    assert isinstance(found[1], FloatingPointError)
    alone = train(build_model(method, settings, shared, 0), shared, 0, 0.02)
    assert np.abs(np.array(alone.losses) - found[0].losses).max() <= 1e-5


def test_a_study_may_ask_for_muon_and_is_told_of_a_wrong_name(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("preset: smoke\nbudget: {optimiser: muon, lrs: [0.05], vector_lr: 0.005}\n")
    assert load_study(path).budget.optimiser == "muon"
    path.write_text("preset: smoke\nbudget: {optimiser: muo}\n")
    with pytest.raises(UserError, match="optimiser must be adamw or muon, got 'muo'"):
        load_study(path)
