"""How many processes a run starts."""

import os

import pytest

from fusionbench.launchers import limits
from fusionbench.launchers.limits import worker_count
from fusionbench.records.cell import RunOptions


@pytest.mark.parametrize(
    ("device", "workers", "seeds_per_pass", "expected"),
    [
        ("cpu", 0, 1, 8),
        ("cpu", 0, 10, 8),
        ("cuda", 0, 1, 12),
        ("cuda:1", 0, 10, 4),
        ("cuda", 3, 1, 3),
    ],
)
def test_small_cells_share_a_gpu_and_passes_fill_it(
    device, workers, seeds_per_pass, expected, monkeypatch
):
    monkeypatch.setattr(limits, "gpu_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    options = RunOptions(device=device, workers=workers)
    assert worker_count(options, seeds_per_pass=seeds_per_pass) == expected


def test_no_more_than_one_for_each_core(monkeypatch):
    monkeypatch.setattr(limits, "gpu_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert worker_count(RunOptions(device="cuda")) == 2
