"""Disks that are full, read-only or lose folders, and clocks that jump (slow).

Disks are mounted in memory, which needs root.
"""

import os
import shutil
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import in_process
import pytest

from fusionbench.records.store import Store

pytestmark = pytest.mark.slow
STUDY = (
    "run", "--preset", "smoke", "--tasks", "planted_layer",
    "--methods", "penultimate,scalar_mix,mema", "--out",
)  # fmt: skip


def mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def why_not():
    """Why no disk can be mounted here; empty where one can."""
    if shutil.which("mount") is None or os.getuid() != 0:
        return "only root can mount a disk"
    with tempfile.TemporaryDirectory() as place:
        done = mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", place)
        if done.returncode == 0:
            subprocess.run(["umount", place], check=True)
        return done.stderr.strip()


WHY_NOT = why_not()
needs_mount = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk; its options can be changed while it is there."""
    place = tmp_path / "disk"
    place.mkdir()

    def change(options, again=True):
        done = mount(*(() if again else ("-t", "tmpfs")), "-o",
                     f"remount,{options}" if again else options, "tmpfs", str(place))  # fmt: skip
        assert done.returncode == 0, done.stderr
        return place

    yield change
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tables(folder):
    found = (folder / "report").rglob("*")
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in found if p.suffix in (".md", ".csv")
    }


def outcomes(folder):
    return {file.name: file.read_bytes() for file in (folder / "outcomes").glob("*.bin")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    variables = {"FUSIONBENCH_CACHE": str(home / "cache")}
    in_process.fusionbench(*STUDY, home / "out", variables=variables)
    return home / "out"


def same_in_the_end(folder, whole):
    in_process.fusionbench(*STUDY, folder)
    assert tables(folder) == tables(whole) and tables(folder)
    assert outcomes(folder) == outcomes(whole)


SMALL = (
    "size=32k",
    "size=64k",
    "size=96k",
    "size=128k",
    "nr_inodes=6",
    "nr_inodes=12",
    "nr_inodes=30",
)


@needs_mount
@pytest.mark.fault(
    "stored data",
    "a full disk, or one without inodes, under the results",
    "said in words; the run after it gives the same tables",
)
@pytest.mark.parametrize("small", SMALL)
def test_a_full_disk_under_the_results(small, disk, cache, whole):
    folder = disk(small, again=False) / "out"
    code, _, said = in_process.run(*STUDY, folder)
    assert code != 0 and "no space left on the disk" in said
    assert "Traceback" not in said
    disk("size=64m,nr_inodes=100000")
    same_in_the_end(folder, whole)


@needs_mount
@pytest.mark.fault(
    "stored data",
    "a full disk, or one without inodes, under the cache",
    "said in words; the run after it gives the same tables",
)
@pytest.mark.parametrize("small", ["size=64k", "size=200k", "size=800k", "nr_inodes=5"])
def test_a_full_disk_under_the_cache(small, disk, whole, tmp_path, monkeypatch):
    place = disk(small, again=False)
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(place / "cache"))
    code, _, said = in_process.run(*STUDY, tmp_path / "out")
    full = "features do not fit" if "size" in small else "no space left on the disk"
    assert code == 2 and full in said and "0.00 GiB" not in said
    assert "Traceback" not in said
    disk("size=64m,nr_inodes=100000")
    same_in_the_end(tmp_path / "out", whole)


@needs_mount
@pytest.mark.fault(
    "stored data",
    "a read-only disk under the results, empty or finished",
    "said in words; the run after it gives the same tables",
)
@pytest.mark.parametrize("state", ["empty", "finished"])
def test_a_read_only_disk_under_the_results(state, disk, cache, whole):
    folder = disk("size=64m", again=False) / "out"
    if state == "finished":
        shutil.copytree(whole, folder)
    disk("ro")
    code, _, said = in_process.run(*STUDY, folder)
    assert code == 2 and "no permission to write" in said
    assert "Traceback" not in said
    disk("rw")
    same_in_the_end(folder, whole)


@needs_mount
@pytest.mark.fault(
    "stored data", "a read-only disk under the cache", "refused empty, read when complete"
)
@pytest.mark.parametrize("state", ["empty", "complete"])
def test_a_read_only_disk_under_the_cache(state, disk, whole, tmp_path, monkeypatch):
    place = disk("size=64m", again=False)
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(place / "cache"))
    if state == "complete":
        in_process.fusionbench(*STUDY, tmp_path / "first")
    disk("ro")
    code, _, said = in_process.run(*STUDY, tmp_path / "out")
    if state == "empty":
        assert code == 2 and "FUSIONBENCH_CACHE" in said and "Traceback" not in said
        disk("rw")
    same_in_the_end(tmp_path / "out", whole)


@pytest.mark.fault(
    "stored data",
    "a folder that vanishes while a study runs",
    "said in words; the run after it gives the same tables",
)
@pytest.mark.parametrize("name", ["cells", "outcomes", "items", "", "cache"])
def test_a_folder_that_vanishes_while_the_study_runs(name, cache, whole, tmp_path, monkeypatch):
    folder, write, count = tmp_path / "out", Store.write, iter(range(9))

    def loses(self, *arguments, **named):
        found = write(self, *arguments, **named)
        if next(count) == 1:
            shutil.rmtree(cache if name == "cache" else folder / name)
        return found

    monkeypatch.setattr(Store, "write", loses)
    code, out, said = in_process.run(*STUDY, folder)
    monkeypatch.setattr(Store, "write", write)
    assert "Traceback" not in said, said
    if name != "cache" and outcomes(folder) != outcomes(whole):
        assert code != 0, out + said
    same_in_the_end(folder, whole)


DAY = 86_400


def _clock_jumps(days):
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + days * DAY
    time.time_ns = lambda: now_ns() + days * DAY * 10**9


@pytest.mark.fault(
    "stored data", "a clock that jumps 400 days back, then 800 ahead", "the same tables"
)
def test_a_clock_that_jumps_changes_nothing(cache, whole, tmp_path, injected):
    folder = tmp_path / "out"
    for days in (-400, 400):
        jump = partial(_clock_jumps, days)
        assert in_process.killed_behind(1, Store, "write", *STUDY, folder, prepare=jump) == -9
        for file in (file for file in Path(folder).rglob("*") if file.is_file()):
            os.utime(file, (time.time() + days * DAY,) * 2)
    same_in_the_end(folder, whole)
    injected(2)
