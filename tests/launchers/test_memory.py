"""Freed memory stays with the process: no page is asked for twice."""

import os
import subprocess
import sys

import pytest

STEPS = """
import resource
import sys

import torch

from fusionbench.launchers.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.ones(2**18) for _ in range(40)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(way: str) -> int:
    # Left alone, the thresholds move with what the process happened to free before.
    fixed = {f"MALLOC_{name}_THRESHOLD_": str(2**17) for name in ("MMAP", "TRIM")}
    command = [sys.executable, "-c", STEPS, way]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | fixed
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_a_second_round_of_steps_asks_the_system_for_nothing():
    assert faults("keep") < 0.1 * faults("as it is")
