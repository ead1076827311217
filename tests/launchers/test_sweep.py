"""A study on disk: resumed after any interruption, never repeated, one failure never stops it."""

import json
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
from light_commands import loaded_after

from fusionbench.records.cell import CellRecord
from fusionbench.records.store import Store

PLUGIN = str(Path(__file__).parent.parent / "support" / "sweep_plugin.py")
STUDY = (
    "run", "--preset", "smoke", "--seeds", "2", "--tasks", "planted_layer,planted_random",
    "--methods", "penultimate,scalar_mix,mema",
)  # fmt: skip


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fusionbench", *arguments]


def fusionbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=240, check=False
    )


def records(folder: Path) -> dict[str, CellRecord]:
    return {record.id: record for record in Store.open(folder).records()}


def tables(folder: Path) -> dict[str, bytes]:
    found = (folder / "report").rglob("*")
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in found if p.suffix in (".md", ".csv")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    in_process.fusionbench(*STUDY, "--out", folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "results")
    return tmp_path / "results"


def test_every_cell_has_a_record_with_outcomes_and_provenance(finished):
    found = records(finished)
    assert len(found) == 3 * 2 * 2
    for record in found.values():
        assert record.status == "done" and record.outcomes and record.items
        assert record.provenance["software"]["torch"] and record.provenance["hardware"]["cpu"]
        assert record.seed_scope == "task" and record.examples > 0


def test_a_second_run_repeats_nothing(copied):
    before = {path: path.stat().st_mtime_ns for path in (copied / "cells").iterdir()}
    again = fusionbench(*STUDY, "--out", str(copied))
    assert again.returncode == 0 and "0 cells run" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (copied / "cells").iterdir()} == before


def test_a_run_with_nothing_to_do_and_a_dry_run_load_no_torch(finished, tmp_path):
    again = (*STUDY, "--out", finished)
    heavy = {"torch", "timm", "transformers", "scipy"}
    assert loaded_after(heavy, [(*again, "--dry-run"), again], tmp_path) == {}


def test_a_removed_cell_is_run_again_alone_and_comes_back_the_same(copied):
    before = records(copied)
    victim = sorted(before)[5]
    outcomes = (copied / "outcomes" / f"{victim}.bin").read_bytes()
    (copied / "cells" / f"{victim}.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (copied / "cells").iterdir()}
    in_process.fusionbench(*STUDY, "--out", copied)
    after = records(copied)
    assert set(after) == set(before) and after[victim].loss == before[victim].loss
    assert (copied / "outcomes" / f"{victim}.bin").read_bytes() == outcomes
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


@pytest.mark.parametrize("extra", [["--device", "cpu"], ["--workers", "3"], ["--quiet"]])
def test_where_a_study_runs_changes_no_cell(finished, extra):
    said = in_process.fusionbench(*STUDY, "--out", finished, "--dry-run", *extra)
    assert "0 of 12 cells to run" in said


def test_a_changed_setting_runs_exactly_its_own_cells(finished):
    changed = ("--dry-run", "--set", "mema.reduction=2")
    assert "4 of 12 cells to run" in in_process.fusionbench(*STUDY, "--out", finished, *changed)


@pytest.mark.fault(
    "plug-ins and workers", "a run killed between or in its cells", "the same tables in the end"
)
@pytest.mark.parametrize("count", [1, 7])
def test_killed_between_records_it_ends_with_the_same_tables(finished, tmp_path, count):
    folder = tmp_path / "killed"
    assert in_process.killed_behind(count, Store, "write", *STUDY, "--out", folder) == -9
    assert len(list((folder / "cells").glob("*.json"))) == count
    assert f"{12 - count} cells run" in in_process.fusionbench(*STUDY, "--out", folder)
    assert tables(folder) == tables(finished) and tables(folder)


@pytest.mark.fault(
    "plug-ins and workers", "a run killed between or in its cells", "the same tables in the end"
)
@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_tables(finished, tmp_path, injected):
    folder, rng = tmp_path / "killed", random.Random(7)
    for _ in range(3):
        process = subprocess.Popen(
            command(*STUDY, "--out", str(folder)),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(rng.uniform(2.0, 7.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    in_process.fusionbench(*STUDY, "--out", folder)
    assert tables(folder) == tables(finished) and tables(folder)
    injected(3)


@pytest.mark.fault(
    "plug-ins and workers", "Ctrl-C in a run", "says how to go on; the run after it ends well"
)
def test_ctrl_c_leaves_a_resumable_state_and_says_so(tmp_path):
    folder = tmp_path / "interrupted"
    process = subprocess.Popen(
        command(*STUDY, "--out", str(folder), "--workers", "1"), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(folder.glob("cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Traceback" not in said
    if process.returncode == 130:
        assert "same command" in said
        assert 0 < len(records(folder)) < 12
    in_process.fusionbench(*STUDY, "--out", folder)
    assert len(records(folder)) == 12


@pytest.mark.fault(
    "plug-ins and workers",
    "methods that raise, refuse or diverge beside good ones",
    "named; the others are done",
)
def test_a_broken_method_is_recorded_and_stops_nobody(tmp_path):
    folder = tmp_path / "mixed"
    arguments = (
        "run", "--preset", "smoke", "--tasks", "planted_layer", "--plugin", PLUGIN,
        "--methods", "breaks,refuses,diverges,twin_one,twin_two,penultimate", "--out", folder,
    )  # fmt: skip
    code, out, err = in_process.run(*arguments)
    assert code == 1, out + err
    by_label = {record.label: record for record in records(folder).values()}
    assert by_label["refuses"].status == "skipped" and "1,000 layers" in by_label["refuses"].reason
    assert by_label["penultimate"].status == "done" and "breaks" not in by_label
    failures = [json.loads(path.read_text()) for path in (folder / "failures").glob("*.json")]
    assert len(failures) == 1 and "broken on purpose" in failures[0]["reason"]
    assert "1,000 layers" in out
    one, two = by_label["twin_one"], by_label["twin_two"]
    outcomes = [(folder / "outcomes" / f"{twin.id}.bin").read_bytes() for twin in (one, two)]
    assert outcomes[0] == outcomes[1] and one.loss == two.loss
    # A training that diverged would diverge again: it has a record, without a score, and a count.
    diverged = by_label["diverges"]
    assert diverged.status == "diverged" and "examples are not finite" in diverged.reason
    assert diverged.score is None and not diverged.outcomes
    assert "- diverged: diverges on planted_layer, 1 cell: the logits of" in out
    # The failure is tried again, and only it.
    assert "1 of 6 cells to run" in in_process.fusionbench(*arguments, "--dry-run")


def test_the_request_is_on_disk_before_the_first_cell(tmp_path, monkeypatch):
    def killed(*_):
        raise SystemExit(137)

    monkeypatch.setattr("fusionbench.launchers.sweep.run_plan", killed)
    in_process.run(*STUDY, "--out", tmp_path / "x")
    (request,) = Store.open(tmp_path / "x").history.requests()
    assert request.study["seeds"] == 2 and "mema" in request.labels


def test_adding_a_method_changes_no_other_number(finished, tmp_path):
    folder = tmp_path / "fewer"
    few = [*STUDY[:-1], "scalar_mix"]
    in_process.fusionbench(*few, "--out", folder)
    both = {cell: record for cell, record in records(finished).items() if cell in records(folder)}
    assert len(both) == 4
    for cell, record in records(folder).items():
        assert record.loss == both[cell].loss and record.score == both[cell].score


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    # Through a worker process, whose error ends the run.
    there = ("--out", str(tmp_path / "x"), "--device", "cuda", "--workers", "1")
    done = fusionbench(*STUDY, *there)
    assert done.returncode == 2 and "no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_cache_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path / "cache"))
    limit = ("--limit-cache", "0.000001")
    code, _, said = in_process.run(*STUDY, "--out", tmp_path / "x", *limit)
    assert code == 2 and "--limit-cache" in said and "Traceback" not in said
