"""How many processes a run starts."""

import os

import pytest

from fusionbench.launchers import devices
from fusionbench.launchers.devices import worker_count
from fusionbench.launchers.jobs import Event
from fusionbench.launchers.workers import events_of
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
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    options = RunOptions(device=device, workers=workers)
    assert worker_count(options, seeds_per_pass=seeds_per_pass) == expected


def test_no_more_than_one_for_each_core(monkeypatch):
    monkeypatch.setattr(devices, "gpu_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert worker_count(RunOptions(device="cuda")) == 2


def test_a_job_whose_end_raises_is_closed_without_a_word(recwarn, capsys):
    """A plug-in that closed the descriptors of its worker: sending fails, and so does cleaning."""

    def work(_):
        try:
            yield Event(kind="begun")
        finally:
            raise OSError("the descriptor is closed")

    events = events_of(work, None)
    assert next(events).kind == "begun"
    events.close()
    assert not recwarn.list and capsys.readouterr().err == ""
