"""Work shared by processes: as if one had done all of it, in order."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from plugin_files import leaves
from toy_records import put, spec

from fusionbench.api.errors import UserError
from fusionbench.records import parallel as forks
from fusionbench.records import verified
from fusionbench.records.parallel import LostError, in_child, in_order
from fusionbench.records.store import Store
from fusionbench.report import analysis
from fusionbench.report.build import write_report

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is forked here")


@pytest.fixture
def forking(monkeypatch):
    """Two processes, whatever machine this is and whatever threads the test runner has."""
    monkeypatch.setattr(forks, "processes", lambda: 2)


def square(number):
    return number * number, os.getpid()


def test_results_come_in_order_and_from_other_processes(forking):
    found = list(in_order([partial(square, number) for number in range(9)]))
    assert [value for value, _ in found] == [number**2 for number in range(9)]
    assert os.getpid() not in {process for _, process in found}


def test_a_job_uses_what_is_here_and_cannot_be_sent(forking):
    here = {"lock": threading.Lock(), "records": list(range(1000))}
    assert list(in_order([lambda: sum(here["records"])] * 3)) == [499500] * 3


def test_an_error_arrives_with_its_hint_after_what_came_before(forking):
    def wrong():
        raise UserError("a score is no number", "remove its file")

    results = in_order([partial(square, 2), wrong, partial(square, 3)])
    assert next(results)[0] == 4
    with pytest.raises(UserError, match="a score is no number") as caught:
        next(results)
    assert caught.value.hint == "remove its file"


@pytest.mark.fault(
    "plug-ins and workers", "a helping process killed", "its work is done by the parent"
)
def test_what_a_killed_process_had_to_do_is_done_here(forking):
    here = os.getpid()

    def deadly():
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done", here

    found = list(in_order([partial(square, 2), deadly, partial(square, 3), deadly]))
    assert [value for value, _ in found] == [4, "done", 9, "done"]


def test_no_thread_and_no_process_stays_behind(forking):
    threads = threading.active_count()
    list(in_order([partial(square, number) for number in range(4)]))
    next(in_order([partial(square, number) for number in range(4)]))
    assert threading.active_count() == threads
    assert not multiprocessing.active_children()


def test_a_program_with_threads_or_a_single_core_does_all_of_it_itself(monkeypatch):
    monkeypatch.setattr(forks, "cores", lambda: 8)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert forks.processes() == forks.MOST
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert forks.processes() == 1
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(forks, "cores", lambda: 1)
    assert list(in_order([partial(square, 3)] * 2)) == [(9, os.getpid())] * 2


@pytest.fixture
def folder(tmp_path):
    """Two conditions of three methods on two tasks, five runs each; one record is cut off."""
    with Store.create(tmp_path / "results") as store:
        for encoder in ("nano", "other"):
            for number, method in enumerate(("penultimate", "last", "mema")):
                for task in ("digits", "scenes_count"):
                    for seed in range(5):
                        cell = spec(method, task, seed, encoder=encoder)
                        last = put(store, cell, 0.3 + 0.1 * number, draw=10 * seed + number)
    file = tmp_path / "results" / "cells" / f"{last.id}.json"
    file.write_text(file.read_text()[:100])
    return tmp_path / "results"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.thorough
def test_a_report_has_the_same_bytes_whatever_the_number_of_processes(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(forks, "processes", lambda: 1)
    write_report(folder, tmp_path / "one")
    (folder / ".checked").unlink()
    monkeypatch.setattr(forks, "processes", lambda: 2)
    monkeypatch.setattr(verified, "_SHARE", 10)
    monkeypatch.setattr(analysis, "_WORTH_A_PROCESS", 0)
    heard = []
    write_report(folder, tmp_path / "two", hear=heard.extend)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert [name for name in one | two if one.get(name) != two.get(name)] == []
    assert len(heard) == 1 and "truncated" in str(heard[0])


ORPHANS = """
import os, sys, time
from functools import partial
from fusionbench.records import parallel
parallel.processes = lambda: 2

def wait(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    while True:
        pass

if __name__ == "__main__":
    kind, folder = sys.argv[1:]
    if kind == "forked":
        list(parallel.in_order([partial(wait, folder)] * 2))
    from files import endless
    parallel.in_child(endless, folder)
"""
ENDLESS = """
import os

def endless(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    while True:
        pass
"""


def lives(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.fault(
    "plug-ins and workers", "the parent killed while it plans or reports", "no process is left"
)
@pytest.mark.parametrize(("kind", "count"), [("forked", 2), ("fresh", 1)])
def test_children_in_an_endless_loop_die_with_a_parent_that_is_killed(kind, count, tmp_path):
    pids = tmp_path / "pids"
    pids.mkdir()
    (tmp_path / "main.py").write_text(ORPHANS)
    (tmp_path / "files.py").write_text(ENDLESS)
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py", kind, pids])
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    children = [int(path.name) for path in pids.iterdir()]
    assert len(children) == count and all(map(lives, children))
    parent.kill()
    parent.wait()
    while any(map(lives, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(lives, children))


@pytest.mark.thorough
def test_a_fresh_process_gives_its_result_or_says_how_it_ended():
    assert in_child(leaves, "well") == "well"
    for how, error, said in (
        ("raises", RuntimeError, "^ValueError: on purpose$"),
        ("exits", RuntimeError, "^SystemExit: 0$"),
        ("dies", LostError, r"^ended the process \(exit code 0\)$"),
        ("hangs", LostError, "^did not end within 3 s$"),
    ):
        with pytest.raises(error, match=said):
            in_child(leaves, how, seconds=3.0 if how == "hangs" else None)


WAITING = """
import os, sys, time
from multiprocessing import get_context
from fusionbench.records.parallel import die_with_parent

def wait(file):
    die_with_parent()
    with open(file, "w") as out:
        out.write(f"{os.getpid()}\\n")
    time.sleep(300)

if __name__ == "__main__":
    child = get_context(sys.argv[1]).Process(target=wait, args=(sys.argv[2],))
    child.start()
    child.join()
"""


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_a_busy_worker_ends_with_the_parent_that_is_killed(way, tmp_path):
    # Not when its cell ends: that may take an hour.
    script, file = tmp_path / "waiting.py", tmp_path / "pid"
    script.write_text(WAITING)
    parent = subprocess.Popen([sys.executable, str(script), way, str(file)])
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text().endswith("\n")):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    child = Path("/proc") / file.read_text().strip() / "stat"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the worker is left"
        time.sleep(0.05)
