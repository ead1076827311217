"""Reading ahead: the same hidden states in the same order, and an end for the thread."""

import threading

import pytest
import torch
from toy_cells import BUDGET, materials

from fusionbench.harness.materials import prefetch

TAPS = ((0,), (2, 3))
ROWS = [torch.arange(16) + shift for shift in (0, 5, 9, 30, 31)]


@pytest.fixture
def mapped(monkeypatch):
    """As if nothing fitted on the device."""
    shared = materials(list(TAPS), BUDGET)
    monkeypatch.setattr(shared, "resident", lambda taps: False)
    return shared


def reading():
    return [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_what_is_read_ahead_is_what_would_have_been_read(mapped):
    found = list(prefetch(mapped, TAPS, ROWS))
    assert len(found) == len(ROWS)
    for picked, hidden in zip(ROWS, found, strict=True):
        assert torch.equal(hidden, mapped.states(picked)(TAPS)) and hidden.dtype == torch.float32
    assert not reading()


def test_it_is_read_by_a_thread_and_not_beyond_a_few_batches(mapped, monkeypatch):
    seen, gather = [], mapped.mapped

    def watched(taps, rows):
        seen.append(threading.current_thread() is threading.main_thread())
        return gather(taps, rows)

    monkeypatch.setattr(mapped, "mapped", watched)
    states = prefetch(mapped, TAPS, ROWS)
    next(states)
    assert seen and not any(seen) and len(seen) <= 3
    states.close()
    assert not reading()


def test_some_taps_may_lie_on_the_device_and_others_not(mapped, monkeypatch):
    monkeypatch.setattr(mapped, "resident", lambda taps: taps == (TAPS[0],))
    for picked, hidden in zip(ROWS, prefetch(mapped, TAPS, ROWS), strict=True):
        assert torch.equal(hidden, mapped.states(picked)(TAPS))


def test_what_lies_on_the_device_starts_no_thread():
    shared = materials(list(TAPS), BUDGET)
    assert shared.resident(TAPS)
    states = prefetch(shared, TAPS, ROWS)
    assert torch.equal(next(states), shared.states(ROWS[0])(TAPS)) and not reading()


def test_a_gpu_holds_what_fits_into_half_of_its_free_memory_and_the_rest_stays_mapped(monkeypatch):
    shared, moved = materials(list(TAPS), BUDGET), []
    stored = torch.zeros(10, 4)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    shared.device = torch.device("cuda")
    for free in (2 * stored.nbytes, 2 * stored.nbytes + 2):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert shared._place(stored) is stored
        assert len(moved) == (free > 2 * stored.nbytes)
    assert moved == [torch.device("cuda")]
