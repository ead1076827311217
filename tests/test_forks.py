"""Work spread over processes: as if one had done all of it, in order."""

import os
import signal
import sys
import threading
from functools import partial

import pytest

from fusionbench.report import forks
from fusionbench.report.forks import spread

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nothing is forked")


@pytest.fixture
def forking(monkeypatch):
    """Two processes, whatever machine this is and whatever threads the test runner has."""
    monkeypatch.setattr(forks, "_cores", lambda: 2)
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def square(number):
    return number * number, os.getpid()


@linux
def test_results_come_in_order_from_other_processes(forking):
    found = spread([partial(square, number) for number in range(9)])
    assert [value for value, _ in found] == [number**2 for number in range(9)]
    assert os.getpid() not in {process for _, process in found}


def test_a_program_with_threads_does_all_of_it_itself():
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        assert spread([partial(square, 3)]) == [(9, os.getpid())]
    finally:
        end.set()
        other.join()


@linux
def test_an_error_is_raised_as_if_nothing_had_been_forked(forking):
    def broken():
        raise KeyError("of the second")

    with pytest.raises(KeyError, match="of the second"):
        spread([partial(square, 1), broken, partial(square, 2)])


@linux
def test_what_a_killed_process_had_is_done_here(forking):
    here = os.getpid()

    def deadly():
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done", here

    found = spread([deadly, partial(square, 2), deadly, partial(square, 3)])
    assert [value for value, _ in found] == ["done", 4, "done", 9]


@linux
def test_a_large_result_arrives_whole(forking):
    assert spread([lambda: b"x" * 3_000_000] * 3) == [b"x" * 3_000_000] * 3


def test_nothing_to_do_is_nothing():
    assert spread([]) == []
