"""Runs jobs in worker processes on this machine: who runs what, and what follows a worker's death.

Every cell runs on one thread, however many workers there are, so that the number of workers
changes no result. Code of a plug-in runs in workers of its own. The cell of a worker that dies is
tried once more; the cell of one that takes too long is not.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait

from fusionbench.api.errors import FatalError
from fusionbench.launchers.jobs import (
    ENDED,
    EncodeJob,
    Event,
    Job,
    TapsJob,
    Token,
    company_of,
    left_of,
    tokens_of,
)
from fusionbench.launchers.limits import TimeLimits, least_used, worker_count, worker_devices
from fusionbench.launchers.signing import Failures
from fusionbench.launchers.workers import Worker, close_all
from fusionbench.records.cell import RunOptions
from fusionbench.study.plan import Cell

_TRIES = 2
"""Of a job whose worker dies."""
_MOST_HANGS = 2
"""Cells of a method that may reach the limit of time; its others are not tried then."""


_LONGEST_WAIT = 24 * 3600.0
"""Seconds; the operating system refuses a wait of centuries, which a forecast may be."""


@dataclass(kw_only=True)
class _Waiting:
    """A job and how often a worker has died of it since a cell of it ended."""

    job: Job
    deaths: int = 0


@dataclass(kw_only=True)
class _Busy:
    """A job at work."""

    waiting: _Waiting
    deadline: float | None
    begun: dict[str, Cell] = field(default_factory=dict)
    """Cells at work."""
    broken: str = ""
    spoiled: bool = False

    @property
    def job(self) -> Job:
        """What the worker runs."""
        return self.waiting.job


class LocalLauncher:
    """Workers on this machine, started with the first jobs; one that dies is replaced."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.limits = TimeLimits(options)
        self.fail = Failures(options)
        self._devices = worker_devices(options)
        self.idle: list[Worker] = []
        self.busy: list[tuple[Worker, _Busy]] = []
        self.waiting: deque[_Waiting] = deque()
        self.encoding: set[Token] = set()
        self.ended: set[str] = set()
        self.hangs: Counter[str] = Counter()
        self.most = 1

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs; those that wait for another run need no encoding.

        Raises FatalError for what makes further work impossible (no disk, no such device).
        """
        self.on_event = on_event
        self.ended = set()
        self.waiting = deque(_Waiting(job=job) for job in jobs)
        makers = [job for job in jobs if isinstance(job, EncodeJob | TapsJob)]
        self.encoding = {token for job in makers for token in tokens_of(job)}
        self.most = self._useful(jobs)
        missing = self.most - len(self.idle)
        for _ in range(missing):
            self.idle.append(self._fresh())
        while self.waiting or self.busy:
            self._hand_out()
            self._gather()

    def _useful(self, jobs: Sequence[Job]) -> int:
        """Workers that can be busy: a task's trainings start after its encoding."""
        trainings = [job for job in jobs if not isinstance(job, EncodeJob | TapsJob)]
        size = max((job.cells[0].spec.budget.seeds_per_pass for job in trainings), default=1)
        most = max(len(jobs) - len(trainings), len(trainings))
        cells = [job.cells[0] for job in trainings]
        return min(worker_count(self.options, seeds_per_pass=size, trainings=cells), most)

    def _hand_out(self) -> None:
        while len(self.busy) < self.most and (found := self._next()) is not None:
            worker = self._worker_for(found.job)
            if not worker.send(found.job):
                # It died while it was idle, so not of this job.
                self._note(worker.end())
                worker = self._fresh()
                worker.send(found.job)
            deadline = self.limits.deadline(found.job)
            self.busy.append((worker, _Busy(waiting=found, deadline=deadline)))

    def _next(self) -> _Waiting | None:
        """Take the first job that can start; None if all wait for an encoding."""
        for index, one in enumerate(self.waiting):
            if isinstance(one.job, EncodeJob | TapsJob) or not self.encoding & tokens_of(one.job):
                del self.waiting[index]
                return one
        return None

    def _worker_for(self, job: Job) -> Worker:
        """An idle worker that has run code of the same plug-ins, or of none, or a fresh one."""
        wanted = company_of(job)
        for company in (wanted, None):
            for worker in self.idle:
                if worker.company == company:
                    self.idle.remove(worker)
                    return worker
        # One more than can be busy may wait for the next job of its company.
        if len(self.idle) + len(self.busy) > self.most:
            close_all([(self.idle.pop(0), False)])
        return self._fresh()

    def _fresh(self) -> Worker:
        """A fresh worker on the device that has the fewest."""
        everyone = [*self.idle, *(worker for worker, _ in self.busy)]
        device = least_used(self._devices, (worker.device for worker in everyone))
        return Worker.start(replace(self.options, device=device))

    def _gather(self) -> None:
        """Wait for news of the workers, or until one of them has taken too long."""
        if not self.busy:
            # Nobody is left to make what these wait for.
            while self.waiting:
                self._give_up(self.waiting.popleft().job, "its hidden states were not made")
            return
        ready = wait(self._sources(), _left([busy.deadline for _, busy in self.busy]))
        for worker in self.idle:
            worker.listen()
        for worker, busy in list(self.busy):
            worker.listen()
            if worker.connection in ready or worker.process.sentinel in ready:
                self._hear(worker, busy)
            elif busy.deadline is not None and time.monotonic() > busy.deadline:
                self._hung(worker, busy)

    def _sources(self) -> list[Connection | int]:
        everyone = [*self.idle, *(worker for worker, _ in self.busy)]
        found: list[Connection | int] = [one.log for one in everyone if not one.silent]
        for worker, _ in self.busy:
            found += [worker.connection, worker.process.sentinel]
        return found

    def _hear(self, worker: Worker, busy: _Busy) -> None:
        event = worker.receive()
        if event is None:
            self._lost(worker, busy)
        elif event.kind == "fatal":
            raise FatalError(event.text, event.hint)
        elif event.encode is not None:
            self.waiting.appendleft(_Waiting(job=event.encode))
        elif event.kind == "idle":
            self._over(worker, busy)
        else:
            self._take(busy, event)

    def _take(self, busy: _Busy, event: Event) -> None:
        """What a worker says of a cell or of its job."""
        busy.spoiled = busy.spoiled or event.kind == "spoiled"
        if event.kind == "broken":
            busy.broken = event.text
        if event.cell is not None:
            cell = event.cell.spec.id
            # A process that a plug-in has forked may report as well.
            if cell in self.ended:
                return
            if event.kind == "begun":
                busy.begun[cell] = event.cell
                busy.deadline = self.limits.deadline(busy.job, list(busy.begun.values()))
            elif event.kind in ENDED:
                self.ended.add(cell)
                busy.begun.pop(cell, None)
                # An earlier death was that of this cell.
                busy.waiting.deaths = 0
                busy.deadline = busy.deadline if busy.begun else None
        self.on_event(event)

    def _over(self, worker: Worker, busy: _Busy) -> None:
        """A job has come to its end, well or badly."""
        self.busy.remove((worker, busy))
        if busy.spoiled:
            worker.stop()
        else:
            self.idle.append(worker)
        job = busy.job
        if isinstance(job, EncodeJob | TapsJob):
            if busy.broken:
                self._give_up(job, busy.broken)
            else:
                self.encoding -= tokens_of(job) if isinstance(job, EncodeJob) else set()
        elif busy.broken:
            self._give_up(job, busy.broken)
        elif rest := left_of(job, self.ended):
            self.waiting.appendleft(_Waiting(job=rest))

    def _lost(self, worker: Worker, busy: _Busy) -> None:
        """A worker is gone: its job is tried again, or its cells fail."""
        self.busy.remove((worker, busy))
        why = worker.end()
        job, deaths = busy.job, busy.waiting.deaths + 1
        self._note(f"{_named(job)}: {why}")
        if deaths < _TRIES:
            if again := job if isinstance(job, EncodeJob | TapsJob) else left_of(job, self.ended):
                self.waiting.appendleft(_Waiting(job=again, deaths=deaths))
            return
        why = f"{why}, {_TRIES} times"
        if isinstance(job, EncodeJob | TapsJob) or not busy.begun:
            self._give_up(job, why)
            return
        self._fail(busy.begun.values(), why)
        if rest := left_of(job, self.ended):
            self.waiting.appendleft(_Waiting(job=rest))

    def _hung(self, worker: Worker, busy: _Busy) -> None:
        """A cell has taken longer than it may."""
        self.busy.remove((worker, busy))
        worker.stop()
        job, cells = busy.job, list(busy.begun.values())
        why = f"{worker.said()}ended after {self.limits.words(job, cells)}"
        if isinstance(job, EncodeJob | TapsJob):
            self._give_up(job, why)
            return
        self._fail(cells, why)
        method = job.cells[0].chosen.label
        self.hangs[method] += 1
        if rest := left_of(job, self.ended):
            self.waiting.appendleft(_Waiting(job=rest))
        if self.hangs[method] >= _MOST_HANGS:
            why = f"not tried, since {_MOST_HANGS} cells of {method} reached their limit of time"
            for one in [one for one in self.waiting if _is_of(one.job, method)]:
                self.waiting.remove(one)
                self._give_up(one.job, why)

    def _give_up(self, job: Job, why: str) -> None:
        """Fail the cells of a job, or of all trainings that wait for it."""
        if isinstance(job, EncodeJob | TapsJob):
            tokens = tokens_of(job)
            self.encoding -= tokens
            waiting = [one for one in self.waiting if _waits_for(one.job, tokens)]
            for one in waiting:
                self.waiting.remove(one)
                self._give_up(one.job, why)
        elif rest := left_of(job, self.ended):
            self._fail(rest.cells, why)

    def _fail(self, cells: Iterable[Cell], why: str) -> None:
        for cell in cells:
            self.ended.add(cell.spec.id)
            self.on_event(self.fail(cell, why))

    def _note(self, text: str) -> None:
        self.on_event(Event(kind="lost", text=text))

    def close(self) -> None:
        """Let idle workers end and stop the others: a record is complete or absent."""
        everyone = [(one, False) for one in self.idle] + [(one, True) for one, _ in self.busy]
        self.idle, self.busy = [], []
        close_all(everyone)


def _named(job: Job) -> str:
    """The method and the task of a job."""
    if isinstance(job, EncodeJob):
        return f"encoding of {job.task}"
    if isinstance(job, TapsJob):
        return f"layers of {job.trainings[0].cells[0].chosen.label}"
    tasks = {cell.spec.task for cell in job.cells}
    return f"{job.cells[0].chosen.label} on {', '.join(sorted(tasks))}"


def _left(deadlines: Iterable[float | None]) -> float | None:
    """Seconds until the first deadline, at most a day; None without one."""
    known = [one for one in deadlines if one is not None]
    return min(max(0.0, min(known) - time.monotonic()), _LONGEST_WAIT) if known else None


def _waits_for(job: Job, tokens: set[Token]) -> bool:
    return not isinstance(job, EncodeJob | TapsJob) and bool(tokens & tokens_of(job))


def _is_of(job: Job, method: str) -> bool:
    return not isinstance(job, EncodeJob | TapsJob) and job.cells[0].chosen.label == method
