"""Several runs in one folder at once: each cell runs once, none is lost, and all runs end well."""

import re
import shlex
import shutil
import subprocess
import sys
import threading

import pytest

from fusionbench.records.folder import LOCKS, claimed, claims, exclusive
from fusionbench.records.store import Store

STUDY = ("run", "--preset", "smoke", "--tasks", "planted_layer", "--workers", "1")
METHODS = "penultimate,scalar_mix,last"


WITHOUT_FIGURES = """
from fusionbench.cli.main import main
from fusionbench.report import build
build.write_figures = lambda *_: []
main()
"""


def started(folder, *more):
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_FIGURES, *STUDY, *more, "--out", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def counts(said):
    return [
        int(number) for number in re.search(r"(\d+) cells run, (\d+) were there", said).groups()
    ]


@pytest.mark.thorough
@pytest.mark.fault(
    "clusters", "two runs at once in one folder", "each cell runs once, both report all"
)
def test_two_runs_at_once_share_the_cells_and_both_report_all(tmp_path):
    # One asks for two seeds of the other's methods: they have jobs, not only cells, in common.
    runs = [
        started(tmp_path, "--methods", METHODS, "--seeds", "1"),
        started(tmp_path, "--methods", f"{METHODS},mema-readout", "--seeds", "2"),
    ]
    said = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    (few, few_there), (many, many_there) = (counts(out) for out, _ in said)
    records = list(Store.open(tmp_path).records())
    assert len(records) == 4 * 2 and all(record.status == "done" for record in records)
    assert few + few_there == 3 and many + many_there == 8
    assert few + many == 8
    assert not (tmp_path / LOCKS).exists() and not list((tmp_path / "failures").iterdir())
    for out, _ in said:
        assert "report: " in out


def test_a_claim_is_held_by_one_and_free_again_afterwards(tmp_path):
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a") as second:
        assert first and not second
        with claimed(tmp_path, "b") as other:
            assert other
    with claimed(tmp_path, "a") as again:
        assert again
    assert not (tmp_path / LOCKS).exists()


def test_who_waits_gets_the_claim_when_it_is_released(tmp_path):
    got = []

    def wait():
        with claimed(tmp_path, "a", wait=True) as ours:
            got.append(ours)

    with claimed(tmp_path, "a"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.5)
        assert not got
    thread.join(10)
    assert got == [True]


@pytest.mark.fault(
    "clusters", "the claim of a process that died, here or on another host", "free again"
)
def test_a_process_that_dies_releases_its_claim(tmp_path):
    code = (
        "import os, sys, pathlib\nfrom fusionbench.records.folder import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 'a'):\n    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    with claimed(tmp_path, "a") as ours:
        assert ours


def test_the_folder_is_exclusive_for_one_at_a_time(tmp_path):
    order = []

    def second():
        with exclusive(tmp_path):
            order.append("second")

    with exclusive(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.4)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


HOLDER = """
import pathlib, sys, time
from fusionbench.records.folder import claimed
with claimed(pathlib.Path(sys.argv[1]), "a", cells=[("mema", "digits", 0)]):
    print("held", flush=True)
    time.sleep(600)
"""


def other_host(*command):
    """A command that sees another name of the host and other numbers of processes."""
    inner = f"hostname elsewhere && exec {shlex.join(command)}"
    return ["unshare", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", inner]


def no_namespaces():
    done = subprocess.run(other_host("true"), capture_output=True, check=False)
    return done.returncode != 0


@pytest.mark.fault(
    "clusters", "the claim of a process that died, here or on another host", "free again"
)
@pytest.mark.skipif(shutil.which("unshare") is None or no_namespaces(), reason="no namespaces")
def test_a_claim_of_another_host_is_seen_and_free_when_its_process_dies(tmp_path):
    command = other_host(sys.executable, "-c", HOLDER, str(tmp_path))
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        (claim,) = claims(tmp_path)
        # That number belongs to another process on this host.
        assert claim.held and re.fullmatch(r"elsewhere:\d", claim.where)
        with claimed(tmp_path, "a") as ours:
            assert not ours
    finally:
        holder.kill()
        holder.wait()
    with claimed(tmp_path, "a", wait=True) as ours:
        assert ours
