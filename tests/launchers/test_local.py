"""Workers on this machine: the heap they start with, and what a launcher promises."""

import os
import subprocess
import sys

import pytest

from fusionbench.launchers.workers import HEAP, environment

STEPS = """
import resource

import torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.ones(2**18) for _ in range(40)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(heap: dict[str, str]) -> int:
    # By default the thresholds move with what the process happened to free before.
    fixed = {f"MALLOC_{name}_THRESHOLD_": str(2**17) for name in ("MMAP", "TRIM")}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True,
        env={**os.environ, **fixed, **heap},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_with_the_workers_heap_a_second_round_of_steps_asks_the_system_for_nothing():
    assert faults(dict(HEAP)) < 0.1 * faults({})


def test_the_environment_is_changed_only_while_a_worker_starts_and_a_users_value_wins(monkeypatch):
    mine, other, *_ = HEAP
    monkeypatch.setenv(mine, "1")
    monkeypatch.delenv(other, raising=False)
    with environment(HEAP):
        assert os.environ[mine] == "1" and os.environ[other] == HEAP[other]
    assert os.environ[mine] == "1" and other not in os.environ
