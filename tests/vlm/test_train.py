"""Training: any number of processes and micro-batches gives the same losses and weights."""

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from vlm_training import BUDGET, SETUP, Case, ToyData, ToyModel, failing, outcome, spoken

from fusionbench.api.errors import UserError
from fusionbench.api.types import Unsupported
from fusionbench.cli.run import launched
from fusionbench.harness.train import Optimisers, schedule
from fusionbench.records.cell import RunOptions
from fusionbench.vlm import processes
from fusionbench.vlm.processes import World, joined, start
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


def test_a_process_waits_for_work_as_long_as_rank_0_scores(monkeypatch):
    monkeypatch.setattr(processes, "_LONGEST_WAIT", timedelta(seconds=0.2))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    lead, done = World(store=store), []

    def followed() -> None:
        other = dist.TCPStore("127.0.0.1", store.port, is_master=False)
        processes.follow(World(store=other, rank=1))
        done.append(True)

    waiting = threading.Thread(target=followed)
    waiting.start()
    time.sleep(1)
    assert not done and waiting.is_alive()
    processes.dismiss(lead)
    waiting.join(timeout=10)
    assert done


@pytest.mark.thorough
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
    with torch.no_grad():
        term = float(model.own_loss(data.fetch(order)))
    assert term > 0.01
    for mean, loss in expected.items():
        found = outcome(ONE, Case(replace(SETUP, mean=mean, micro_batch=2))).history.losses[0]
        assert found == pytest.approx(float(loss) + term, abs=1e-6)


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


@pytest.mark.thorough
def test_frozen_weights_stay_and_parameters_without_a_gradient_are_named(two):
    fresh = dict(ToyModel().named_parameters())
    for found in (outcome(ONE, CASES["ddp, frozen"]), two[1]["ddp, frozen"]):
        assert set(found.frozen) >= {"encoder.weight", "table.weight", "head.bias"}
        for name, weight in found.frozen.items():
            assert torch.equal(weight, fresh[name])
        assert found.history.unmoved == ("never",)
    assert two[0]["shard"].history.unmoved == ("never",)


@pytest.mark.thorough
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


# Processes: what reaches them, how they end, and launchers that start too few.

# What `accelerate launch --cpu --num_processes 2` (1.15.0) sets in the one process it starts.
ACCELERATE = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "ACCELERATE_USE_CPU": "True",
    "ACCELERATE_MIXED_PRECISION": "no",
}
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of a launcher, and no other of its kind."""

    def put(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    put()
    return put


def world_of(expected, **options):
    with joined(expected, device="cpu", **options) as world:
        return world


def first(world, *values):
    return (world, *values)


@pytest.mark.thorough
def test_each_process_has_its_rank_and_hears_the_others():
    for rank, found in enumerate(start(2, spoken, ("words",), device="cpu")):
        number, size, main, device, sent, gathered, total, declared, threads = found
        assert (number, size, main, device) == (rank, 2, rank == 0, "cpu")
        assert sent == {"from": 0, "value": "words"}
        assert gathered == [0, 10]
        assert total.tolist() == [2.0, 1.0]
        assert (declared, threads) == ("2", 1)


def test_a_process_alone_hears_itself():
    world = World()
    assert world.main
    assert world.broadcast("x") == "x"
    assert world.gathered(3) == [3]
    assert world.total(torch.tensor(2.0)) == 2
    world.barrier()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("user", UserError, "^no such image"),
        ("bug", RuntimeError, "^process 1 of 2: KeyError: 'a bug'"),
    ],
)
def test_the_error_of_a_process_reaches_the_caller_and_ends_the_others(kind, error, message):
    with pytest.raises(error, match=message) as found:
        start(2, failing, (kind,), device="cpu")
    assert "process 1 of 2" in "\n".join(found.value.__notes__)
    if kind == "user":
        assert found.value.hint == "look again"
    if kind == "bug":
        assert "in failing" in found.value.__notes__[0]


@pytest.mark.thorough
def test_no_process_is_left_when_the_parent_is_killed(tmp_path):
    code = (
        "from vlm_training import sleeping\n"
        "from fusionbench.vlm.processes import start\n"
        f"if __name__ == '__main__': start(2, sleeping, ({str(tmp_path)!r},), device='cpu')\n"
    )
    script = tmp_path.parent / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script])
    try:
        assert _soon(lambda: len(list(tmp_path.iterdir())) == 2, 60)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert _soon(lambda: not any(_runs(pid) for pid in pids), 20)


def _soon(happened, seconds):
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until:
        time.sleep(0.05)
    return happened()


def _runs(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("others", [{}, ACCELERATE, {"WORLD_SIZE": 1, "RANK": 0}])
def test_a_launcher_that_starts_one_process_of_two_is_refused(environment, others):
    environment(**others)
    with pytest.raises(UserError, match="^2 processes asked for") as error:
        world_of(2)
    assert "accelerate launch --cpu" in error.value.hint


def test_a_launcher_with_one_silent_process_is_refused_when_no_number_is_named(environment):
    environment(**ACCELERATE)
    with pytest.raises(UserError, match="says nothing of WORLD_SIZE") as error:
        launched(RunOptions())
    assert "--processes N" in error.value.hint


def test_a_launcher_that_starts_more_processes_is_refused(environment):
    environment(WORLD_SIZE=4, RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=1)
    with pytest.raises(UserError, match="^1 process asked for, .* WORLD_SIZE=4"):
        world_of(1)
    with pytest.raises(UserError, match="^2 processes asked for, .* WORLD_SIZE=4"):
        world_of(2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": 2}, "RANK is not set"),
        ({"WORLD_SIZE": 2, "RANK": ""}, "RANK is ''"),
        ({"WORLD_SIZE": 2, "RANK": 2}, "RANK is 2, and WORLD_SIZE 2 allows 0 to 1"),
        ({"WORLD_SIZE": 2, "RANK": 0}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is not set"),
    ],
)
def test_missing_and_wrong_variables_are_named(environment, variables, message):
    environment(**variables)
    with pytest.raises(UserError, match=message):
        world_of(2)


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_for_the_others_in_vain_says_so(environment, rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment(WORLD_SIZE=2, RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(UserError, match="met no other process|did not come within"):
        world_of(2, arrival=timedelta(seconds=1))


def test_more_processes_than_cuda_devices_are_refused(environment, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="3 processes on a machine with 2 CUDA devices"):
        start(3, first)
    environment(WORLD_SIZE=4, RANK=1, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
    with pytest.raises(UserError, match="4 processes on a machine with 2 CUDA devices"):
        with joined(4):
            pass


def test_without_a_launcher_one_process_is_this_one(environment):
    assert not launched(RunOptions())
    world = world_of(1)
    assert (world.size, world.main) == (1, True)


@pytest.mark.thorough
@pytest.mark.slow
def test_torchrun_starts_a_world_whose_rank_0_leads(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "from fusionbench.vlm.processes import dismiss, follow, joined, lead\n"
        "from vlm_training import diverging, spoken\n"
        "with joined(2, device='cpu') as world:\n"
        "    if world.main:\n"
        "        found = lead(world, spoken, ('x',))\n"
        "        try:\n"
        "            lead(world, diverging)\n"
        "        except FloatingPointError as error:\n"
        "            again = lead(world, spoken, (str(error),))\n"
        "        dismiss(world)\n"
        "        print('FOUND', found[:3], found[5], again[4]['value'], flush=True)\n"
        "    else:\n"
        "        print('FOUND', follow(world), flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    done = subprocess.run([*command, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    assert lines == ["FOUND (0, 2, True) [0, 10] it diverged", "FOUND None"]
