"""Run the pending cells of a plan with a launcher and count what happened. No torch here."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fusionbench.launchers.jobs import EncodeJob, Event, Job, Launcher, TapsJob, jobs_of
from fusionbench.launchers.limits import work
from fusionbench.study.plan import Cell, Plan


class Progress(Protocol):
    """Shows the state of a run."""

    def start(self, total: int, done: int) -> None: ...
    def cell(self, label: str, task: str, seed: int) -> None: ...
    def finished(self, n: int = 1, *, share: float | None = None) -> None: ...
    def note(self, text: str) -> None: ...
    def stage(self, text: str) -> None: ...
    def close(self) -> None: ...


_STOPPING = "stopping: the workers end; cells that are recorded stay"


@dataclass(kw_only=True)
class SweepResult:
    """Numbers of cells by what a run did with them."""

    finished: int
    """Cells that had a record before, or got one from another run meanwhile."""
    executed: int = 0
    skipped: int = 0
    failed: int = 0
    interrupted: bool = False
    waited: float = 0.0
    """Seconds until the first cell began: workers start, images are encoded."""


def run_plan(plan: Plan, launcher: Launcher, progress: Progress) -> SweepResult:
    """Run the pending cells of a plan, and close the launcher.

    Jobs that another run of the folder holds come last: this run waits until their records are
    there, and runs what is missing then. Raises UserError for what a person can mend; Ctrl-C leaves
    a resumable state.
    """
    expected = {cell.spec.id: work(cell) for cell in plan.pending}
    counts = _Counts(
        result=SweepResult(finished=plan.finished), progress=progress, expected=expected
    )
    jobs = jobs_of(plan) if plan.pending else []
    try:
        if jobs:
            progress.start(len(plan.cells), plan.finished)
            launcher.run(jobs, counts.on_event)
        if held := counts.held(jobs):
            progress.note(f"waiting for {len(counts.claimed)} cells of another run in this folder")
            launcher.run(held, counts.on_event)
    except KeyboardInterrupt:
        counts.result.interrupted = True
        progress.note(_STOPPING)
    finally:
        launcher.close()
        progress.close()
    if not counts.result.interrupted:
        # Cells of a worker that died, or of a task that could not be encoded, have no record.
        counts.result.failed += max(0, len(plan.pending) - counts.ended)
    return counts.result


@dataclass(kw_only=True)
class _Counts:
    result: SweepResult
    progress: Progress
    expected: Mapping[str, float]
    """Work of each pending cell."""
    ended: int = 0
    done: float = 0.0
    claimed: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)

    def held(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs with cells that another run holds, to be waited for."""
        trainings = [job for job in jobs if not isinstance(job, EncodeJob | TapsJob)]
        return [
            replace(job, wait=True)
            for job in trainings
            if any(cell.spec.id in self.claimed for cell in job.cells)
        ]

    def on_event(self, event: Event) -> None:
        if event.kind in ("broken", "lost", "note"):
            self.progress.note(event.text)
        elif event.kind == "stage":
            self.progress.stage(event.text)
        if event.cell is None:
            return
        if event.kind == "begun":
            self.result.waited = self.result.waited or time.monotonic() - self.started
            spec = event.cell.spec
            self.progress.cell(event.cell.chosen.label, spec.task, spec.seed)
        elif event.kind == "claimed":
            self.claimed.add(event.cell.spec.id)
        else:
            self._count(event.kind, event.cell, event.text)

    def _count(self, kind: str, cell: Cell, text: str) -> None:
        self.ended += 1
        self.result.executed += kind == "done"
        self.result.skipped += kind == "skipped"
        self.result.failed += kind == "failed"
        self.result.finished += kind == "found"
        if kind == "failed":
            self.progress.note(
                f"{cell.chosen.label} on {cell.spec.task}, seed {cell.spec.seed}: {text}"
            )
        self.done += self.expected.get(cell.spec.id, 0.0)
        self.progress.finished(share=self.done / (sum(self.expected.values()) or 1.0))
