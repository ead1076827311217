"""Killed at many moments, or run many times at once, a study ends with the same tables (slow)."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import in_process
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc"),
]
STUDY = (
    "run", "--preset", "smoke", "--seeds", "2", "--tasks", "planted_layer,planted_random",
    "--methods", "penultimate,scalar_mix,mema",
)  # fmt: skip
CODE = b"- **Uncommitted changes**"
WITHOUT_FIGURES = """
from fusionbench.cli.main import main
from fusionbench.report import build
build.write_figures = lambda *_: []
main()
"""


def started(folder, cache):
    """The study with two workers, in a session of its own."""
    arguments = (*STUDY, "--workers", "2", "--quiet", "--out", str(folder))
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_FIGURES, *arguments], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FUSIONBENCH_CACHE": str(cache)},
    )  # fmt: skip


def processes(session):
    """Living processes of a session: (process, parent)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent, _, its = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its) == session and state != "Z":
                found.append((int(place.name), int(parent)))
    return found


def kill(whom, run, rng):
    """SIGKILL to all processes of a run, to its first one, or to one of the others."""
    living = [process for process, _ in processes(run.pid)]
    if whom == "all":
        victims = living
    else:
        others = [process for process in living if process != run.pid]
        victims = [run.pid] if whom == "parent" else rng.sample(others, min(1, len(others)))
    for process in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return len(victims)


def contents(folder):
    """Bytes of outcomes, items and report, without what changes with a commit beside the test."""
    files = [*folder.glob("outcomes/*"), *folder.glob("items/*"), *folder.rglob("report/**/*")]
    kept = [file for file in files if file.is_file() and file.suffix != ".html"]
    found = {str(file.relative_to(folder)): file.read_bytes().splitlines(True) for file in kept}
    return {name: [one for one in lines if CODE not in one] for name, lines in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study without a fault, and the seconds that it takes as processes of its own."""
    home = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    run = started(home / "out", home / "cache")
    assert run.communicate()[1] == "" and run.returncode == 0
    return home, time.monotonic() - start


KILLS = [
    pytest.param("all", 50, id="all", marks=pytest.mark.fault(
        "plug-ins and workers", "kill -9 of parent and workers at a random moment",
        "no process is left; the same outcomes and report, byte for byte, in the end")),
    pytest.param("parent", 15, id="parent", marks=pytest.mark.fault(
        "plug-ins and workers", "kill -9 of the parent alone at a random moment",
        "no process is left; the same outcomes and report, byte for byte, in the end")),
    pytest.param("worker", 15, id="worker", marks=pytest.mark.fault(
        "plug-ins and workers", "kill -9 of one of the other processes alone at a random moment",
        "no process is left; the same outcomes and report, byte for byte, in the end")),
]  # fmt: skip


@pytest.mark.parametrize(("whom", "count"), KILLS)
def test_killed_at_any_moment_it_ends_with_the_same_files(whom, count, whole, tmp_path, injected):
    (home, seconds), rng = whole, random.Random(f"kills of {whom}")
    kills = finished = 0
    while kills < count:
        folder, cache = tmp_path / f"out-{finished}", tmp_path / f"cache-{finished}"
        run = started(folder, cache)
        time.sleep(rng.uniform(0.05, 1.0) * seconds)
        kills += kill(whom, run, rng) if run.poll() is None else 0
        if whom != "worker":
            run.wait(60)
        _, said = run.communicate(timeout=600)
        deadline = time.monotonic() + 60
        while processes(run.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not processes(run.pid), "a process is left"
        if run.returncode == 0:
            assert contents(folder) == contents(home / "out")
            shutil.rmtree(folder)
            shutil.rmtree(cache)
            finished += 1
        else:
            assert run.returncode == -signal.SIGKILL or whom == "worker", said
    again = {"FUSIONBENCH_CACHE": str(tmp_path / f"cache-{finished}")}
    in_process.fusionbench(*STUDY, "--out", tmp_path / f"out-{finished}", variables=again)
    assert contents(tmp_path / f"out-{finished}") == contents(home / "out")
    injected(kills)


@pytest.mark.fault(
    "plug-ins and workers", "runs of one study at once, one folder, one empty cache",
    "each cell runs once; all end well with the same report",
)  # fmt: skip
def test_six_runs_at_once_on_one_folder_and_one_empty_cache(whole, tmp_path, injected):
    home, _ = whole
    runs = [started(tmp_path / "out", tmp_path / "cache") for _ in range(6)]
    said = [run.communicate(timeout=900)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), said
    assert contents(tmp_path / "out") == contents(home / "out")
    injected(len(runs))
