"""Who runs what, and what follows the death of a worker; workers here have no process."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import bad_plugins
import pytest
import torch
from toy_records import spec

from fusionbench.launchers import limits, local
from fusionbench.launchers.jobs import EncodeJob, Event, TapsJob, company_of, jobs_of
from fusionbench.launchers.limits import worker_count
from fusionbench.launchers.local import LocalLauncher
from fusionbench.launchers.progress import Silent
from fusionbench.launchers.state import ProcessState, Spoiled
from fusionbench.launchers.sweep import run_plan
from fusionbench.launchers.workers import HEAP, environment, events_of
from fusionbench.records.cell import RunOptions, Training
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.plan import make_plan, resolve
from fusionbench.study.study import SMOKE

DIES = pytest.mark.fault(
    "plug-ins and workers",
    "a worker that dies, idle or at work",
    "replaced; its cell is tried twice, then named with the last lines",
)


class Script:
    """A worker that does what its behaviour says of each job, without a process."""

    started: list["Script"] = []

    def __init__(self, options):
        self.company, self.events, self.silent, self.alive = None, [], True, True
        self.connection = self.log = self
        self.process, self.sentinel, self.printed = self, id(self), ""
        self.had, self.device = [], options.device
        Script.started.append(self)

    def send(self, job):
        self.company = company_of(job)
        self.had.append(job)
        if not self.alive:
            return False
        self.events = list(Script.behaviour(self, job))
        return True

    def receive(self):
        return self.events.pop(0) if self.events else None

    def listen(self):
        pass

    def said(self):
        return self.printed

    def end(self):
        self.alive = False
        return "the worker process ended unexpectedly (exit code 9)"

    def stop(self):
        self.alive = False

    def close(self):
        self.alive = False


HANGS = Event(kind="note", text="hangs")


def well(worker, job):
    """Every job ends well."""
    if isinstance(job, TapsJob):
        for training in job.trainings:
            encode = EncodeJob(task=training.tasks[0].spec.task, trainings=(training,), taps={(1,)})
            yield Event(kind="taps", encode=encode)
    elif not isinstance(job, EncodeJob):
        for cell in job.cells:
            yield Event(kind="begun", cell=cell)
            yield Event(kind="done", cell=cell)
    yield Event(kind="idle")


def label(job):
    return "" if isinstance(job, EncodeJob | TapsJob) else job.cells[0].chosen.label


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = bad_plugins.write(tmp_path_factory.mktemp("lost") / "plugins", "threads")
    methods = ("penultimate", "scalar_mix", "good", "bad_threads")
    study = replace(SMOKE, methods=methods, tasks=("planted_layer",), seeds=2)
    return make_plan(resolve(study, read_catalog([folder])), ())


@pytest.fixture
def sweep(monkeypatch, tmp_path, plan, capsys):
    """Run the plan with workers of a behaviour: counts, failures by label, what was printed."""
    monkeypatch.setattr(local.Worker, "start", Script)
    monkeypatch.setattr(local, "close_all", lambda workers: None)

    def ready(sources, seconds):
        found = [one for one in sources if isinstance(one, Script) and one.events != [HANGS]]
        if not found:
            time.sleep(seconds)
        return found

    monkeypatch.setattr(local, "wait", ready)

    def run(behaviour, **options):
        Script.started, Script.behaviour = [], behaviour
        store = Store.create(tmp_path / "out")
        launcher = LocalLauncher(RunOptions(out=str(store.folder), workers=2, **options))
        result = run_plan(plan, launcher, Silent(_Stream()))
        failed = {}
        for one in store.failures(()):
            failed.setdefault(one.label, []).append((one.spec.seed, one.reason))
        return result, failed

    return run


class _Stream:
    def write(self, text):
        pass

    def flush(self):
        pass


def test_methods_of_plugins_are_asked_and_trained_apart(plan):
    jobs = jobs_of(plan)
    kinds = [type(job).__name__ for job in jobs]
    assert kinds.count("EncodeJob") == 1 and kinds.count("TapsJob") == 2
    asked = {cell.chosen.label for job in jobs[0].trainings for cell in job.cells}
    assert asked == {"penultimate", "scalar_mix"}
    companies = {label(job): company_of(job) for job in jobs}
    assert companies["penultimate"] == companies["scalar_mix"] == ()
    assert len({companies["good"], companies["bad_threads"], ()}) == 3


def test_no_worker_runs_code_of_two_plugins(sweep):
    result, failed = sweep(well)
    assert (result.executed, result.failed, failed) == (8, 0, {})
    for worker in Script.started:
        assert len({company_of(job) for job in worker.had}) <= 1


@DIES
def test_a_worker_that_died_idle_is_replaced_and_its_job_runs(sweep):
    def once(worker, job):
        yield from well(worker, job)
        if len(Script.started) < 3:
            worker.alive = False

    result, failed = sweep(once)
    assert (result.executed, failed) == (8, {})


@DIES
def test_a_cell_whose_worker_dies_is_tried_once_more_and_the_others_go_on(sweep):
    def dies(worker, job):
        if label(job) != "bad_threads":
            yield from well(worker, job)
            return
        yield Event(kind="begun", cell=job.cells[0])

    result, failed = sweep(dies)
    tried = [job for one in Script.started for job in one.had if label(job) == "bad_threads"]
    assert (result.executed, result.failed, len(tried)) == (6, 2, 4)
    assert sorted(seed for seed, _ in failed["bad_threads"]) == [0, 1] and len(failed) == 1
    assert all("exit code 9" in why and "2 times" in why for _, why in failed["bad_threads"])


@DIES
def test_each_cell_of_a_job_may_lose_a_worker_once(sweep):
    died = []

    def dies(worker, job):
        for cell in job.cells if label(job) == "bad_threads" else ():
            yield Event(kind="begun", cell=cell)
            if cell.spec.id not in died:
                died.append(cell.spec.id)
                return
            yield Event(kind="done", cell=cell)
        yield from [Event(kind="idle")] if label(job) == "bad_threads" else well(worker, job)

    result, failed = sweep(dies)
    assert (result.executed, result.failed, failed, len(died)) == (8, 0, {}, 2)


@DIES
def test_a_death_that_is_not_repeated_costs_no_cell(sweep):
    deaths = []

    def dies(worker, job):
        if label(job) and label(job) not in deaths:
            deaths.append(label(job))
            yield Event(kind="begun", cell=job.cells[0])
            return
        yield from well(worker, job)

    result, failed = sweep(dies)
    assert (result.executed, result.failed, failed, len(deaths)) == (8, 0, {}, 4)


@pytest.mark.fault(
    "plug-ins and workers", "an encoding that fails", "its trainings fail by name, the others run"
)
def test_an_encoding_or_a_question_that_fails_fails_its_trainings_by_name(sweep):
    def fails(worker, job):
        if isinstance(job, EncodeJob) and job.taps is None:
            yield Event(kind="broken", text="the file is gone")
            yield Event(kind="idle")
        elif isinstance(job, TapsJob) and "bad" in job.trainings[0].cells[0].chosen.label:
            return
        else:
            yield from well(worker, job)

    result, failed = sweep(fails)
    assert (result.executed, result.failed) == (2, 6)
    assert set(failed) == {"penultimate", "scalar_mix", "bad_threads"}
    assert failed["penultimate"][0][1] == "the file is gone"
    assert "exit code 9" in failed["bad_threads"][0][1]


@pytest.mark.fault(
    "plug-ins and workers", "a worker whose state cannot be set back", "it runs nothing else"
)
def test_a_spoiled_worker_runs_nothing_else_and_the_cells_that_are_left_run_elsewhere(sweep):
    def spoils(worker, job):
        if label(job) != "good":
            yield from well(worker, job)
            return
        yield Event(kind="begun", cell=job.cells[0])
        yield Event(kind="done", cell=job.cells[0])
        yield Event(kind="spoiled", text="a thread goes on")
        yield Event(kind="idle")

    result, failed = sweep(spoils)
    assert (result.executed, result.failed, failed) == (8, 0, {})
    spoiled = [one for one in Script.started if "good" in map(label, one.had)]
    assert len(spoiled) == 2 and not any(one.alive for one in spoiled)
    assert all(one.had[-1:] and label(one.had[-1]) == "good" for one in spoiled)


def test_a_process_whose_gpu_has_failed_is_unfit_for_other_cells():
    state = ProcessState(lambda *, encoders: None)
    state.enter(stranger=False)
    with pytest.raises(torch.AcceleratorError), state.kept("mema", "digits", 0):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel ...")
    assert state.spoiled == "CUDA error: device-side assert triggered"
    with pytest.raises(Spoiled), state.kept("mema", "digits", 1):
        pass
    fresh = ProcessState(lambda *, encoders: None)
    fresh.enter(stranger=False)
    with pytest.raises(torch.OutOfMemoryError), fresh.kept("mema", "digits", 0):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert not fresh.spoiled


@pytest.mark.fault(
    "plug-ins and workers", "a method that never returns", "ended at `--limit-cell` with a reason"
)
def test_a_cell_that_hangs_is_ended_and_after_two_its_method_is_not_tried_again(sweep, plan):
    def hangs(worker, job):
        if label(job) != "good":
            yield from well(worker, job)
            return
        yield Event(kind="begun", cell=job.cells[0])
        worker.printed = "at step 3\n"
        yield HANGS

    result, failed = sweep(hangs, cell_seconds=0.05)
    assert (result.executed, result.failed) == (6, 2)
    assert all("0 s, its limit of time" in why for _, why in failed["good"])
    assert all("at step 3" in why for _, why in failed["good"])


def test_a_limit_of_time_longer_than_a_process_can_wait_for_is_waited_for(sweep, monkeypatch):
    ready = local.wait

    def waits(sources, seconds):
        # The real one raises OverflowError above.
        assert seconds is None or seconds < threading.TIMEOUT_MAX
        return ready(sources, seconds)

    monkeypatch.setattr(local, "wait", waits)
    result, _ = sweep(well, cell_seconds=1e300)
    assert (result.executed, result.failed) == (8, 0)


def test_two_reports_of_one_cell_count_once(sweep):
    def twice(worker, job):
        for event in well(worker, job):
            yield event
            if event.kind == "done":
                yield event

    result, _ = sweep(twice)
    assert (result.executed, result.failed) == (8, 0)


# Workers on this machine: the heap they start with, and what a launcher promises.

STEPS = """
import resource

import torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.ones(2**18) for _ in range(40)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(heap: dict[str, str]) -> int:
    # By default the thresholds move with what the process happened to free before.
    fixed = {f"MALLOC_{name}_THRESHOLD_": str(2**17) for name in ("MMAP", "TRIM")}
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True,
        env={**os.environ, **fixed, **heap},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_with_the_workers_heap_a_second_round_of_steps_asks_the_system_for_nothing():
    assert faults(dict(HEAP)) < 0.1 * faults({})


def test_the_environment_is_changed_only_while_a_worker_starts_and_a_users_value_wins(monkeypatch):
    mine, other, *_ = HEAP
    monkeypatch.setenv(mine, "1")
    monkeypatch.delenv(other, raising=False)
    with environment(HEAP):
        assert os.environ[mine] == "1" and os.environ[other] == HEAP[other]
    assert os.environ[mine] == "1" and other not in os.environ


# How many processes a run starts.


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


@pytest.mark.parametrize(
    ("language", "device", "options", "expected"),
    [
        ("hf:llama", "cuda", {}, 2),
        ("hf:llama", "cuda:1", {}, 1),
        ("hf:llama", "cuda", {"processes": 2}, 1),
        ("words", "cuda", {}, 16),
        ("words", "cuda", {"processes": 2}, 1),
        ("hf:llama", "cpu", {}, 8),
        ("hf:llama", "cuda", {"workers": 3}, 3),
    ],
)
def test_a_language_model_with_weights_has_a_gpu_for_itself(
    language, device, options, expected, monkeypatch
):
    monkeypatch.setattr(limits, "gpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    training = Training(language=language, language_weights="w", stages=())
    cell = SimpleNamespace(spec=spec(track="vlm", training=training))
    given = RunOptions(device=device, **options)
    assert worker_count(given, trainings=[cell]) == expected


def test_no_more_than_one_for_each_core(monkeypatch):
    monkeypatch.setattr(limits, "gpu_count", lambda: 1)
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
