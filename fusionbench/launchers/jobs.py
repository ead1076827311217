"""Jobs and events as plain data, the order they run in, and the protocol of what runs them.

Code of plug-ins runs in processes of its own: a method of a plug-in tells its taps in one process,
and another one, which has imported no plug-in method, encodes them.
"""

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fusionbench.registry.discovery import BUILT_IN
from fusionbench.study.plan import Cell, ModelJob, Plan, TrainJob

Tap = tuple[int, ...]
"""As in `api.fusion`, which loads torch."""
Company = tuple[str, ...]
"""The plug-in files whose code a job runs; empty for built-in ones, which share processes."""
Training = TrainJob | ModelJob


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Write a task's bundle and every hidden state that its trainings read."""

    task: str
    trainings: tuple[Training, ...]
    taps: frozenset[Tap] | None = None
    """The hidden states, where the methods were asked before; None: they are asked now."""

    @property
    def cell(self) -> Cell:
        """A cell of the task."""
        return next(cell for cell in self.trainings[0].tasks if cell.spec.task == self.task)


@dataclass(frozen=True, kw_only=True)
class TapsJob:
    """Ask the methods of a plug-in which hidden states they read."""

    trainings: tuple[Training, ...]


Job = EncodeJob | TapsJob | TrainJob | ModelJob
Token = tuple[str, Company]
"""What a training waits for: the encoding of a task for its method, or for all built-in ones."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A report of a worker about a cell, a job or itself."""

    kind: str
    """Of a cell: `begun`, `done`, `skipped`, `failed`, `found` (it has a record by now), `claimed`
    (another run works at it). Of a job: `broken`, `note` (worth saying), `stage` (how far it is),
    `taps` (they are to be encoded), `spoiled` (its process is unfit for the cells that are left),
    `idle` (over). Of a worker: `lost` (it died), `fatal` (no work is possible)."""
    cell: Cell | None = None
    text: str = ""
    hint: str = ""
    encode: EncodeJob | None = None
    """Of `taps`."""


ENDED = ("done", "skipped", "failed", "found", "claimed")
"""Kinds of events after which a cell needs no work in this run."""


class Launcher(Protocol):
    """Runs jobs in processes, on this machine or elsewhere; results go through the store."""

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs, each training after the encoding of its tasks.

        Raises UserError for what makes further work impossible.
        """

    def close(self) -> None:
        """Release the workers; those at work are stopped."""


def jobs_of(plan: Plan) -> list[Job]:
    """The encoding of each task, the questions to methods of plug-ins, then the trainings."""
    trainings = list(plan.jobs())
    built_in = [job for job in trainings if not method_of(job)]
    asked: dict[Company, list[Training]] = {}
    for job in trainings:
        if own := method_of(job):
            asked.setdefault(own, []).append(job)
    questions = [TapsJob(trainings=tuple(jobs)) for jobs in asked.values()]
    encodings = [EncodeJob(task=t, trainings=tuple(jobs)) for t, jobs in by_task(built_in).items()]
    return [*encodings, *questions, *trainings]


def by_task(trainings: Sequence[Training]) -> dict[str, list[Training]]:
    """The trainings that read each task."""
    found: dict[str, list[Training]] = {}
    for job in trainings:
        for cell in job.tasks:
            found.setdefault(cell.spec.task, []).append(job)
    return found


def method_of(job: Training) -> Company:
    """The plug-in of a training's method; empty for a built-in one."""
    card = job.cells[0].chosen.card
    return () if card.source == BUILT_IN else (f"{card.file}:{card.family}",)


def company_of(job: Job) -> Company:
    """All plug-ins whose code a job runs."""
    if isinstance(job, EncodeJob):
        return _data_of([job.cell])
    if isinstance(job, TapsJob):
        cells = [cell for one in job.trainings for cell in one.tasks]
        return tuple(dict.fromkeys((*method_of(job.trainings[0]), *_encoders_of(cells))))
    return tuple(dict.fromkeys((*method_of(job), *_data_of([*job.tasks, *job.cells]))))


def _data_of(cells: Sequence[Cell]) -> Company:
    files = [cell.task.file for cell in cells if cell.task.source != BUILT_IN]
    return tuple(dict.fromkeys((*files, *_encoders_of(cells))))


def _encoders_of(cells: Sequence[Cell]) -> Company:
    return tuple(dict.fromkeys(cell.encoder.path for cell in cells if cell.encoder.module))


def tokens_of(job: Job) -> set[Token]:
    """What a training waits for, or what an encoding or a question gives."""
    if isinstance(job, EncodeJob):
        return {(job.task, method_of(job.trainings[0]))}
    trainings = job.trainings if isinstance(job, TapsJob) else (job,)
    return {(cell.spec.task, method_of(one)) for one in trainings for cell in one.tasks}


def left_of(job: Training, ended: Container[str]) -> Training | None:
    """The job with the cells that are not in `ended`; None if all are."""
    cells = tuple(cell for cell in job.cells if cell.spec.id not in ended)
    return replace(job, cells=cells) if cells else None


Fail = Callable[[Cell, str], Event]
"""Records a cell that no worker could finish, with the reason."""


def in_turn(
    run: Callable[[Job], Iterator[Event]], jobs: Sequence[Job], fail: Fail
) -> Iterator[Event]:
    """The events of all jobs, run one after the other in one process."""
    waiting = deque(jobs)
    unmade: dict[Token, str] = {}
    while waiting:
        job = waiting.popleft()
        maker = isinstance(job, EncodeJob | TapsJob)
        missing = [] if maker else [unmade[one] for one in tokens_of(job) if one in unmade]
        if missing:
            yield from _failed(job, missing[0], (), fail)
            continue
        over = _Over()
        yield from over.listen(run(job), waiting)
        if maker:
            unmade |= dict.fromkeys(tokens_of(job), over.broken) if over.broken else {}
        elif over.broken:
            yield from _failed(job, over.broken, over.ended, fail)
        elif over.spoiled and (rest := _rest(job, over.ended)):
            waiting.appendleft(rest)


class _Over:
    """What the events of one job come to."""

    def __init__(self) -> None:
        self.ended: set[str] = set()
        self.broken, self.spoiled = "", False

    def listen(self, events: Iterator[Event], waiting: deque[Job]) -> Iterator[Event]:
        """Pass the events on; an encoding that they ask for comes first in `waiting`."""
        for event in events:
            if event.encode is not None:
                waiting.appendleft(event.encode)
                continue
            self.spoiled = self.spoiled or event.kind == "spoiled"
            self.broken = event.text if event.kind == "broken" else self.broken
            if event.cell is not None and event.kind in ENDED:
                self.ended.add(event.cell.spec.id)
            yield event


def _rest(job: Job, ended: Container[str]) -> Training | None:
    return None if isinstance(job, EncodeJob | TapsJob) else left_of(job, ended)


def _failed(job: Job, why: str, ended: Container[str], fail: Fail) -> Iterator[Event]:
    if rest := _rest(job, ended):
        yield from (fail(cell, why) for cell in rest.cells)
