"""Jobs and events as plain data, and the protocol of what runs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fusionbench.study.plan import Cell, ModelJob, Plan, TrainJob


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Write a task's bundle and every hidden state that its trainings read."""

    task: str
    trainings: tuple[TrainJob | ModelJob, ...]

    @property
    def cell(self) -> Cell:
        """A cell of the task."""
        return next(cell for cell in self.trainings[0].tasks if cell.spec.task == self.task)


Job = EncodeJob | TrainJob | ModelJob


@dataclass(frozen=True, kw_only=True)
class Event:
    """A report of a worker about a cell, a job or itself."""

    kind: str
    """Of a cell: `begun`, `done`, `skipped`, `failed`, `found` (it has a record by now), `claimed`
    (another run works at it). Of a job: `broken`, `note` (worth saying), `idle` (over). Of a
    worker: `lost` (it died), `fatal` (no work is possible)."""
    cell: Cell | None = None
    text: str = ""
    hint: str = ""


class Launcher(Protocol):
    """Runs jobs in processes, on this machine or elsewhere; results go through the store."""

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs, each training after the encoding of its tasks.

        Raises UserError for what makes further work impossible.
        """

    def close(self) -> None:
        """Release the workers; those at work are stopped."""


def jobs_of(plan: Plan) -> list[Job]:
    """The encoding of each task, then the trainings."""
    trainings = list(plan.jobs())
    by_task: dict[str, list[TrainJob | ModelJob]] = {}
    for job in trainings:
        for cell in job.tasks:
            by_task.setdefault(cell.spec.task, []).append(job)
    encodings = [EncodeJob(task=task, trainings=tuple(jobs)) for task, jobs in by_task.items()]
    return [*encodings, *trainings]
