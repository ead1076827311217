"""A study on disk: resumed after any interruption, never repeated, one failure never stops it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import in_process
import numpy as np
import pytest
from in_process import loaded_after
from sweep_plugin import __file__ as plugin

from fusionbench.harness.bundle import bundle_path, cut, drop_images, kept_images, read_bundle
from fusionbench.launchers import limits, local
from fusionbench.launchers.jobs import in_turn, jobs_of
from fusionbench.launchers.limits import gpu_count, least_used, worker_count, worker_devices
from fusionbench.launchers.runner import Runner, seeds_of_pass
from fusionbench.launchers.signing import Failures
from fusionbench.launchers.workers import Worker
from fusionbench.records.cell import CellRecord, RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study import data as task_source
from fusionbench.study.data import load_data, task_hash, task_hashes
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import SMOKE

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
@pytest.mark.thorough
@pytest.mark.parametrize("count", [7, 1])
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


# Workers and GPUs, counted on a machine without any.

CORES = 64


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """A machine with so many GPUs and 64 cores."""

    def machine(count):
        monkeypatch.setattr(limits, "_DRIVER", tmp_path / "nvidiactl")
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CORES)))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{i}" for i in range(count))):
            if count:
                (tmp_path / name).touch()

    return machine


@pytest.mark.parametrize(
    ("count", "device", "wanted"),
    [
        (0, "auto", ("auto",)),
        (1, "auto", ("auto",)),
        (1, "cuda", ("cuda",)),
        (4, "auto", ("cuda:0", "cuda:1", "cuda:2", "cuda:3")),
        (2, "cuda", ("cuda:0", "cuda:1")),
        (4, "cuda:2", ("cuda:2",)),
        (4, "cpu", ("cpu",)),
    ],
)
def test_each_gpu_is_the_device_of_a_group_unless_one_is_named(gpus, count, device, wanted):
    gpus(count)
    assert worker_devices(RunOptions(device=device)) == wanted


def test_a_training_on_several_processes_places_them_itself(gpus):
    gpus(4)
    assert worker_devices(RunOptions(device="cuda", processes=4)) == ("cuda",)


@pytest.mark.parametrize(
    ("visible", "count"),
    [("0,1", 2), ("3", 1), ("", 0), ("-1", 0), ("0,-1,2", 1), ("GPU-a,GPU-b", 2)],
)
def test_only_visible_gpus_count(gpus, monkeypatch, visible, count):
    gpus(4)
    assert gpu_count() == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


def test_the_number_of_workers_grows_with_the_gpus_up_to_the_cores(gpus, monkeypatch):
    gpus(4)
    assert worker_count(RunOptions()) == 48
    assert worker_count(RunOptions(), seeds_per_pass=10) == 16
    assert worker_count(RunOptions(device="cuda:1")) == 12
    assert worker_count(RunOptions(device="cpu")) == 8
    assert worker_count(RunOptions(workers=3)) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    # Each GPU has a worker.
    assert worker_count(RunOptions()) == 4


def test_the_next_worker_is_of_the_smallest_group():
    two = ("cuda:0", "cuda:1")
    assert least_used(two, []) == "cuda:0"
    assert least_used(two, ["cuda:0"]) == "cuda:1"
    assert least_used(two, ["cuda:1", "cuda:1", "cuda:0"]) == "cuda:0"


def test_workers_start_in_equal_groups_and_one_that_died_comes_back_to_its_own(gpus, monkeypatch):
    gpus(3)

    def start(options):
        return Worker(process=None, connection=None, log=None, device=options.device)

    monkeypatch.setattr(Worker, "start", staticmethod(start))
    monkeypatch.setattr(local.LocalLauncher, "_useful", lambda self, jobs: 7)
    launcher = local.LocalLauncher(RunOptions(device="cuda"))
    launcher.run([], lambda event: None)
    found = [worker.device for worker in launcher.idle]
    assert sorted(found) == ["cuda:0"] * 3 + ["cuda:1"] * 2 + ["cuda:2"] * 2
    gone = launcher.idle.pop(4)
    assert launcher._fresh().device == gone.device == "cuda:1"


# A study whose budget trains several seeds in one pass: its layout, tuning, and resume.

LAYERS = 8
"""Of the planted encoder."""
PASSES_STUDY = replace(
    SMOKE,
    methods=("scalar_mix", "breaks", "refuses", "best_single"),
    tasks=("planted_layer",),
    seeds=3,
    budget=replace(SMOKE.budget, seeds_per_pass=2, lrs=(1e-3, 3e-3), tuning_seeds=2),
)


def work(folder: Path) -> dict[str, list[str]]:
    """Do what is missing; the events of each method."""
    plan = make_plan(resolve(PASSES_STUDY, read_catalog([plugin])), Store.create(folder).finished())
    runner, heard = Runner(RunOptions(out=str(folder), device="cpu")), {}
    fail = Failures(runner.options)
    for event in in_turn(runner.run, jobs_of(plan), fail):
        if event.cell is not None:
            heard.setdefault(event.cell.spec.method, []).append(event.kind)
    return heard


@pytest.fixture(scope="module")
def passes_finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passes")
    return folder, work(folder)


def contents(folder: Path, part: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / part).iterdir()}


def test_every_cell_of_every_pass_is_accounted_for(passes_finished):
    folder, heard = passes_finished
    assert heard["scalar_mix"].count("done") == 3
    assert heard["breaks"].count("failed") == 3 and heard["refuses"].count("skipped") == 3
    done = [r for r in Store.open(folder).records() if r.status == "done"]
    assert {record.spec.seed for record in done} == {0, 1, 2}
    mixes = [record for record in done if record.spec.method == "scalar_mix"]
    assert all(len(record.tuning) == 2 and not record.notes for record in mixes)
    assert len(list((folder / "tuning").iterdir())) == (1 + LAYERS) * 2 * 2


def test_the_best_single_layer_is_chosen_from_passes_of_candidates(passes_finished):
    folder, _ = passes_finished
    found = [r for r in Store.open(folder).records() if r.spec.method == "best_single"]
    assert len(found) == 3
    for record in found:
        assert len(record.tuning) == LAYERS * 2 and f"of {LAYERS} layers" in record.notes[0]


def test_a_missing_cell_is_trained_in_its_whole_pass_and_written_alone(passes_finished):
    folder, _ = passes_finished
    cells, outcomes = contents(folder, "cells"), contents(folder, "outcomes")
    lost = next(
        r
        for r in Store.open(folder).records()
        if r.spec.method == "scalar_mix" and r.spec.seed == 1
    )
    (folder / "cells" / f"{lost.id}.json").unlink()
    assert work(folder)["scalar_mix"] == ["begun", "done"]
    found = Store.open(folder).find(lost.id)
    assert found.loss == lost.loss and found.outcomes == lost.outcomes
    assert contents(folder, "outcomes") == outcomes
    again = contents(folder, "cells")
    assert {n: c for n, c in again.items() if lost.id not in n} == {
        n: c for n, c in cells.items() if lost.id not in n
    }


def test_seeds_come_in_blocks_that_no_missing_cell_can_shift():
    assert seeds_of_pass(0, 4) == seeds_of_pass(3, 4) == range(0, 4)
    assert seeds_of_pass(9, 4) == range(8, 12)


# The first look at a task's data: hashes by several processes, images kept until encoded.

NAMES = ("digits", "planted_layer")
BUDGET = SMOKE.budget


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """Two tasks that no cache has seen."""
    monkeypatch.setenv("FUSIONBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("FUSIONBENCH_DATA", raising=False)
    return [read_catalog().tasks[name] for name in NAMES]


def test_every_hash_is_found_once_whoever_looks(cards, monkeypatch):
    alone = [task_source._look(card, None) for card in cards]
    for file in task_source.cache_dir("data").iterdir():
        file.unlink()
    assert list(task_hashes(cards).values()) == alone
    monkeypatch.setattr(task_source, "load_data", None)  # nobody reads the data again
    assert [task_hash(card) for card in cards] == alone
    task_hashes(cards)


def test_the_images_of_a_cut_are_kept_until_they_are_encoded(cards):
    task_hashes(cards, BUDGET)
    for card in cards:
        bundle = read_bundle(bundle_path(card.name, task_hash(card), BUDGET))
        expected, pixels = cut(card.name, load_data(card), BUDGET)
        assert bundle.images == expected.images
        assert np.array_equal(kept_images(bundle), pixels)
        drop_images(bundle)
        assert kept_images(bundle) is None
        drop_images(bundle)


def test_another_budget_keeps_nothing_that_was_seen_before(cards, tmp_path):
    task_hashes(cards)
    assert not (tmp_path / "images").exists()
    task_hashes(cards, replace(BUDGET, train_items=8))
    assert not (tmp_path / "images").exists()


def test_a_damaged_file_of_images_counts_as_none(cards):
    task_hashes(cards[:1], BUDGET)
    bundle = read_bundle(bundle_path(cards[0].name, task_hash(cards[0]), BUDGET))
    (file,) = task_source.cache_dir("images").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert kept_images(bundle) is None
