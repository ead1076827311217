"""Workers and GPUs, counted on a machine without any."""

import os

import pytest

from fusionbench.launchers import limits, local
from fusionbench.launchers.limits import gpu_count, least_used, worker_count, worker_devices
from fusionbench.launchers.workers import Worker
from fusionbench.records.cell import RunOptions

CORES = 64


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """A machine with so many GPUs and 64 cores."""

    def machine(count):
        monkeypatch.setattr(limits, "_DRIVER", tmp_path / "nvidiactl")
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CORES)))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{i}" for i in range(count))):
            if count:
                (tmp_path / name).touch()

    return machine


@pytest.mark.parametrize(
    ("count", "device", "wanted"),
    [
        (0, "auto", ("auto",)),
        (1, "auto", ("auto",)),
        (1, "cuda", ("cuda",)),
        (4, "auto", ("cuda:0", "cuda:1", "cuda:2", "cuda:3")),
        (2, "cuda", ("cuda:0", "cuda:1")),
        (4, "cuda:2", ("cuda:2",)),
        (4, "cpu", ("cpu",)),
    ],
)
def test_each_gpu_is_the_device_of_a_group_unless_one_is_named(gpus, count, device, wanted):
    gpus(count)
    assert worker_devices(RunOptions(device=device)) == wanted


def test_a_training_on_several_processes_places_them_itself(gpus):
    gpus(4)
    assert worker_devices(RunOptions(device="cuda", processes=4)) == ("cuda",)


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0,1", 2), ("3", 1), ("", 0), ("-1", 0), ("0,-1,2", 1), ("GPU-a,GPU-b", 2)],
)
def test_only_visible_gpus_count(gpus, monkeypatch, visible, count):
    gpus(4)
    assert gpu_count() == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_the_number_of_workers_grows_with_the_gpus_up_to_the_cores(gpus, monkeypatch):
    gpus(4)
    assert worker_count(RunOptions()) == 48
    assert worker_count(RunOptions(), seeds_per_pass=10) == 16
    assert worker_count(RunOptions(device="cuda:1")) == 12
    assert worker_count(RunOptions(device="cpu")) == 8
    assert worker_count(RunOptions(workers=3)) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    # Each GPU has a worker.
    assert worker_count(RunOptions()) == 4


def test_the_next_worker_is_of_the_smallest_group():
    two = ("cuda:0", "cuda:1")
    assert least_used(two, []) == "cuda:0"
    assert least_used(two, ["cuda:0"]) == "cuda:1"
    assert least_used(two, ["cuda:1", "cuda:1", "cuda:0"]) == "cuda:0"


def test_workers_start_in_equal_groups_and_one_that_died_comes_back_to_its_own(gpus, monkeypatch):
    gpus(3)

    def start(options):
        return Worker(process=None, connection=None, log=None, device=options.device)

    monkeypatch.setattr(Worker, "start", staticmethod(start))
    monkeypatch.setattr(local.LocalLauncher, "_useful", lambda self, jobs: 7)
    launcher = local.LocalLauncher(RunOptions(device="cuda"))
    launcher.run([], lambda event: None)
    found = [worker.device for worker in launcher.idle]
    assert sorted(found) == ["cuda:0"] * 3 + ["cuda:1"] * 2 + ["cuda:2"] * 2
    gone = launcher.idle.pop(4)
    assert launcher._fresh().device == gone.device == "cuda:1"
