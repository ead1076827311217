"""Processes: what reaches them, how they end, and launchers that start too few."""

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
from vlm_training import failing, spoken

from fusionbench.api.errors import UserError
from fusionbench.vlm.processes import World, in_processes, joined, launched, start

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
    if others:
        with pytest.raises(UserError, match="^2 processes asked for"):
            in_processes(2, first, device="cpu")


def test_a_launcher_with_one_silent_process_is_refused_when_no_number_is_named(environment):
    environment(**ACCELERATE)
    with pytest.raises(UserError, match="says nothing of WORLD_SIZE") as error:
        in_processes(0, first, device="cpu")
    assert "--processes N" in error.value.hint


def test_a_launcher_that_starts_more_processes_is_refused(environment):
    environment(WORLD_SIZE=4, RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=1)
    with pytest.raises(UserError, match="^1 process asked for, .* WORLD_SIZE=4"):
        in_processes(0, first, device="cpu")
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
    assert not launched()
    world, value = in_processes(0, first, (5,), device="cpu")
    assert (world.size, world.main, value) == (1, True, 5)


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
