"""Training: any number of processes and micro-batches gives the same losses and weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from vlm_training import BUDGET, SETUP, Case, ToyData, ToyModel, outcome

from fusionbench.api.errors import UserError
from fusionbench.api.types import Unsupported
from fusionbench.harness.train import Optimisers, schedule
from fusionbench.vlm.processes import World, start
from fusionbench.vlm.train import Setup, micro_batches, row_weights, train

MUON = replace(BUDGET, optimiser="muon", vector_lr=5e-3)
CLIPPED = replace(BUDGET, clip=0.3)
ONE = World()
CASES = {
    "ddp": Case(),
    "ddp, one row a pass": Case(replace(SETUP, micro_batch=1)),
    "ddp, two rows a pass": Case(replace(SETUP, micro_batch=2, mean="sample")),
    "ddp, muon": Case(replace(SETUP, budget=MUON, micro_batch=2)),
    "ddp, text only": Case(replace(SETUP, micro_batch=1), data={"text_only": True}),
    "ddp, text only, adapter unused": Case(data={"text_only": True}, model={"blank": False}),
    "ddp, frozen": Case(model={"language": False, "scalar": True}),
    "shard": Case(replace(SETUP, strategy="shard")),
    "shard, one row a pass": Case(replace(SETUP, strategy="shard", micro_batch=1)),
    "shard, two rows a pass": Case(
        replace(SETUP, strategy="shard", micro_batch=2, mean="sample", budget=CLIPPED)
    ),
    "shard, text only": Case(
        replace(SETUP, strategy="shard", micro_batch=2), data={"text_only": True}
    ),
    "shard, frozen": Case(replace(SETUP, strategy="shard"), model={"language": False}),
    "nan": Case(data={"poison": 4}),
    "nan, shard": Case(replace(SETUP, strategy="shard"), data={"poison": 4}),
}  # fmt: skip


@pytest.fixture(scope="module")
def two():
    """Outcomes of every case in two processes, by rank."""
    from vlm_training import outcomes

    ranks = start(2, outcomes, (list(CASES.values()),), device="cpu")
    return [dict(zip(CASES, rank, strict=True)) for rank in ranks]


@pytest.mark.parametrize("name", [name for name in CASES if "nan" not in name])
def test_two_processes_train_as_one(two, name):
    case = CASES[name]
    alone = outcome(ONE, replace(case, setup=replace(case.setup, micro_batch=0)))
    assert len(alone.history.losses) == 10
    fresh = dict(ToyModel(**case.model).named_parameters())
    moved = [n for n, w in alone.weights.items() if (w - fresh[n]).abs().max() > 0.01]
    assert len(moved) == len(alone.weights) - 1
    for rank in two:
        assert rank[name].history.losses == pytest.approx(alone.history.losses, abs=1e-5)
        assert rank[name].weights.keys() == alone.weights.keys()
        for key, weight in alone.weights.items():
            torch.testing.assert_close(rank[name].weights[key], weight, atol=1e-5, rtol=0)
        for key, weight in alone.frozen.items():
            assert torch.equal(rank[name].frozen[key], weight)
    assert two[0][name].history == two[1][name].history


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
@pytest.mark.parametrize("mean", ["token", "sample"])
def test_accumulated_gradients_are_those_of_the_whole_batch(micro_batch, mean):
    whole = outcome(ONE, Case(replace(SETUP, mean=mean)))
    parts = outcome(ONE, Case(replace(SETUP, mean=mean, micro_batch=micro_batch)))
    assert parts.history.losses == pytest.approx(whole.history.losses, abs=1e-5)
    assert (
        whole.history.losses != outcome(ONE, Case(replace(SETUP, mean="token"))).history.losses
        or mean == "token"
    )


def test_the_first_loss_is_the_mean_over_tokens_or_over_rows():
    data, model = ToyData(), ToyModel()
    order = data.order(0)
    sums = model.row_losses(data.fetch(order)).detach()
    counts = torch.tensor([data.labelled(row) for row in order])
    assert len(set(counts.tolist())) > 2
    expected = {"token": sums.sum() / counts.sum(), "sample": (sums / counts).mean()}
    assert abs(expected["token"] - expected["sample"]) > 1e-3
    for mean, loss in expected.items():
        found = outcome(ONE, Case(replace(SETUP, mean=mean, micro_batch=2))).history.losses[0]
        assert found == pytest.approx(float(loss), abs=1e-6)


@pytest.mark.parametrize("budget", [BUDGET, MUON])
def test_a_training_is_the_plain_loop_with_the_optimisers_of_the_harness(budget):
    data, model = ToyData(), ToyModel()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimisers = Optimisers(trained, budget, 0.02)
    losses = []
    for step in range(budget.steps):
        order = data.order(step)
        share = torch.full((len(order),), 1 / sum(map(data.labelled, order)))
        loss = model(data.fetch(order), share)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, budget.clip)
        optimisers.step(schedule(step, budget))
        losses.append(loss.item())
    found = outcome(ONE, Case(replace(SETUP, budget=budget)))
    assert found.history.losses == tuple(losses)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(found.weights[name], parameter.detach()), name


def test_frozen_weights_stay_and_parameters_without_a_gradient_are_named(two):
    fresh = dict(ToyModel().named_parameters())
    for found in (outcome(ONE, CASES["ddp, frozen"]), two[1]["ddp, frozen"]):
        assert set(found.frozen) >= {"encoder.weight", "table.weight", "head.bias"}
        for name, weight in found.frozen.items():
            assert torch.equal(weight, fresh[name])
        assert found.history.unmoved == ("never",)
    assert two[0]["shard"].history.unmoved == ("never",)


@pytest.mark.parametrize("name", ["nan", "nan, shard"])
def test_a_loss_that_is_not_finite_ends_every_process_with_step_and_learning_rate(two, name):
    expected = "the loss became nan at step 5 of 10 at learning rate 0.02"
    assert [rank[name].error for rank in two] == [expected] * 2
    assert outcome(ONE, CASES["nan"]).error == expected


@pytest.mark.parametrize(
    ("rows", "size", "micro_batch"), [(8, 2, 0), (7, 2, 1), (7, 3, 2), (5, 5, 4)]
)
def test_every_row_counts_once_and_processes_have_equally_many_passes(rows, size, micro_batch):
    order = list(range(100, 100 + rows))
    ranks = [micro_batches(order, rank, size, micro_batch) for rank in range(size)]
    assert len({len(passes) for passes in ranks}) == 1
    counted = [row for passes in ranks for part, factor in passes for row in part if factor]
    assert sorted(counted) == order
    assert all(
        part and len(part) <= (micro_batch or rows) for passes in ranks for part, _ in passes
    )


def test_a_batch_smaller_than_the_world_is_refused():
    with pytest.raises(UserError, match="batch of 2 rows .* 3 processes"):
        micro_batches([0, 1], 0, 3, 0)


def test_a_row_without_a_labelled_token_is_refused():
    class Unlabelled(ToyData):
        def labelled(self, index):
            return 0 if index == 3 else super().labelled(index)

    with pytest.raises(ValueError, match=r"rows \[3\] have no labelled token"):
        row_weights([1, 3, 2], Unlabelled(), "token")


def test_a_row_drawn_twice_counts_twice():
    weights = row_weights([4, 4, 9], data := ToyData(), "sample")
    assert weights[4] == pytest.approx(1 / (3 * data.labelled(4)))
    counts = 2 * data.labelled(4) + data.labelled(9)
    assert row_weights([4, 4, 9], data, "token")[4] == pytest.approx(1 / counts)


def test_bf16_changes_the_losses_by_little():
    exact = outcome(ONE, Case()).history.losses
    rough = outcome(ONE, Case(replace(SETUP, budget=replace(BUDGET, precision="bf16"))))
    assert rough.history.losses != exact
    assert rough.history.losses == pytest.approx(exact, abs=0.02)


def test_wrong_settings_are_refused_with_what_is_allowed():
    with pytest.raises(UserError, match="Muon, which needs each matrix whole"):
        Setup(budget=MUON, lr=0.1, strategy="shard")
    with pytest.raises(ValueError, match="mean must be one of token, sample.*did you mean 'token'"):
        replace(SETUP, mean="tokens")
    with pytest.raises(ValueError, match="strategy must be one of ddp, shard"):
        replace(SETUP, strategy="fsdp")
    with pytest.raises(UserError, match="micro_batch is -1"):
        replace(SETUP, micro_batch=-1)


def test_parameters_without_dimensions_are_not_sharded():
    shard = replace(SETUP, strategy="shard")
    with pytest.raises(Unsupported, match="without dimensions: gate"):
        train(ToyModel(scalar=True), ToyData(), shard, world=World(size=2))


def test_a_model_is_sharded_once():
    model = ToyModel()
    model.set_requires_gradient_sync = lambda last: None
    with pytest.raises(UserError, match="sharded already"):
        train(model, ToyData(), replace(SETUP, strategy="shard"), world=World(size=2))


def test_a_model_without_trainable_parameters_is_not_trained():
    assert not train(ToyModel().requires_grad_(False), ToyData(), SETUP, world=ONE).losses
