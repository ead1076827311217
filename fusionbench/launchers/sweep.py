"""Run what a plan leaves to do. The parent stays free of torch; workers do the work."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fusionbench.api.errors import UserError
from fusionbench.encoders.fetch import fetch
from fusionbench.launchers.jobs import CellJob, EncodeJob, Event, Job, WorkerSetup
from fusionbench.launchers.local import local_pool
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import Catalog
from fusionbench.registry.selection import Unavailable
from fusionbench.study.plan import Cell, Plan, make_plan
from fusionbench.study.study import Study

_CPU_WORKERS, _GPU_WORKERS, _GPU_WORKERS_OF_PASSES = 8, 12, 4


class Progress(Protocol):
    """What hears of each cell."""

    def start(self, total: int, done: int) -> None: ...
    def cell(self, label: str, task: str, seed: int) -> None: ...
    def finished(self, n: int = 1) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass(kw_only=True)
class SweepResult:
    """What a run did."""

    finished: int
    """Cells that had a record before."""
    executed: int = 0
    failed: int = 0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, task, reason) of cells that cannot run."""
    unavailable: tuple[Unavailable, ...] = ()
    interrupted: bool = False


def run_study(
    study: Study, options: RunOptions, catalog: Catalog, progress: Progress
) -> SweepResult:
    """Run the missing cells of a study and record each; a second call finds nothing to do.

    Raises UserError for what a person can mend; Ctrl-C leaves a resumable state.
    """
    bring_encoder(study, catalog)
    with Store.create(options.out) as store:
        plan = make_plan(study, catalog, store.finished(), keep=True)
        result = SweepResult(finished=plan.finished, unavailable=plan.unavailable)
        if plan.pending:
            _work(plan, options, result, progress)
    return result


def bring_encoder(study: Study, catalog: Catalog) -> None:
    """Fetch the study's encoder unless it is here or a plug-in's. Raises UserError if it fails."""
    if study.encoder in catalog.encoders:
        return
    try:
        fetch(study.encoder)
    except (ValueError, OSError) as error:
        hint = "`fusionbench list encoders` shows what is here"
        raise UserError(str(error), hint) from error


def worker_count(options: RunOptions, *, seeds_per_pass: int = 1) -> int:
    """As asked for; else one per core, at most 8, and 12 or 4 where they share a GPU.

    Small cells are bound by the processor that launches their kernels, so many of them share a GPU
    well; a pass of seeds fills it, and much of its memory, with a few.
    """
    if options.workers:
        return options.workers
    # The parent does not load torch, so it looks for the driver's device instead.
    gpu = options.device.startswith("cuda") or Path("/dev/nvidiactl").exists()
    most = _CPU_WORKERS
    if gpu and options.device != "cpu":
        most = _GPU_WORKERS if seeds_per_pass == 1 else _GPU_WORKERS_OF_PASSES
    return max(1, min(most, len(os.sched_getaffinity(0))))


def _work(plan: Plan, options: RunOptions, result: SweepResult, progress: Progress) -> None:
    jobs = _jobs(plan)
    size = plan.pending[0].spec.budget.seeds_per_pass
    encoding = sum(isinstance(job, EncodeJob) for job in jobs)
    # A task's cells wait for its encoding: no more can be at work than there are of either.
    most = max(encoding, len(jobs) - encoding)
    count = min(worker_count(options, seeds_per_pass=size), most)
    progress.start(len(plan.cells), plan.finished)
    try:
        with local_pool(count, WorkerSetup(options=options)) as pool:
            pool.run(jobs, _listener(result, progress))
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        progress.close()
    if not result.interrupted:
        # Cells of a worker that died, or of a task that could not be encoded, have no record.
        accounted = result.executed + result.failed + len(result.skipped)
        result.failed += max(0, len(plan.pending) - accounted)


def _jobs(plan: Plan) -> list[Job]:
    """First what must be encoded, then the cells."""
    cells = list(plan.jobs())
    by_task: dict[str, list[Cell]] = {}
    for job in cells:
        by_task.setdefault(job[0].spec.task, []).extend(job)
    encode = [EncodeJob(cells=tuple(task)) for task in by_task.values()]
    return [*encode, *(CellJob(cells=job) for job in cells)]


def _listener(result: SweepResult, progress: Progress) -> Callable[[Event], None]:
    def hear(event: Event) -> None:
        if event.kind in ("broken", "lost"):
            progress.note(event.text)
        if event.cell is None:
            return
        if event.kind == "begun":
            progress.cell(event.cell.chosen.label, event.cell.spec.task, event.cell.spec.seed)
        if event.kind in ("done", "skipped", "failed"):
            _count(event, event.cell, result, progress)
            progress.finished()

    return hear


def _count(event: Event, cell: Cell, result: SweepResult, progress: Progress) -> None:
    label, task = cell.chosen.label, cell.spec.task
    if event.kind == "done":
        result.executed += 1
    elif event.kind == "skipped":
        result.skipped.append((label, task, event.text))
    else:
        result.failed += 1
        progress.note(f"{label} on {task}, seed {cell.spec.seed}: {event.text}")
