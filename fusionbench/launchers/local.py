"""Worker processes on this machine, each with a pipe; they die with their parent.

Every cell runs on one thread, however many workers there are, so that the number of workers
changes no result.
"""

import os
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from fusionbench.api.errors import UserError
from fusionbench.launchers.devices import least_used, worker_count, worker_devices
from fusionbench.launchers.jobs import EncodeJob, Event, Job
from fusionbench.records.cell import RunOptions
from fusionbench.study.plan import ModelJob, TrainJob

_GRACE_SECONDS = 5.0
"""Time in which a worker may end by itself."""
_ERROR_LINES = 12
_MIB = 2**20
HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * _MIB),
    "MALLOC_TRIM_THRESHOLD_": str(2048 * _MIB - 1),
    "MALLOC_TOP_PAD_": str(64 * _MIB),
}
"""Environment of workers: glibc keeps freed memory instead of returning it at every step. By
default that costs 12,000 to 30,000 page faults a cell, 7 to 25 % of its processor time."""


@dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    device: str
    job: Job | None = None


class LocalLauncher:
    """Workers on this machine, started with the first jobs; one that dies is replaced."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.workers: list[_Worker] = []
        self.waiting: deque[Job] = deque()
        self.encoding: set[str] = set()
        self._devices = worker_devices(options)

    def _start(self, device: str) -> _Worker:
        return _started(replace(self.options, device=device))

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs; those that wait for another run need no encoding.

        Raises UserError for what makes further work impossible (no disk, no such device).
        """
        self.waiting = deque(jobs)
        self.encoding = {job.task for job in jobs if isinstance(job, EncodeJob)}
        missing = self._useful(jobs) - len(self.workers)
        for _ in range(missing):
            used = (worker.device for worker in self.workers)
            self.workers.append(self._start(least_used(self._devices, used)))
        while self.waiting or any(worker.job for worker in self.workers):
            for worker in self.workers:
                if worker.job is None and (job := self._next()) is not None:
                    worker.job = job
                    worker.connection.send(job)
            for worker in self._with_news():
                on_event(self._received(worker))

    def _useful(self, jobs: Sequence[Job]) -> int:
        """Workers that can be busy: a task's trainings start after its encoding."""
        trainings = [job for job in jobs if not isinstance(job, EncodeJob)]
        size = max((job.cells[0].spec.budget.seeds_per_pass for job in trainings), default=1)
        most = max(len(jobs) - len(trainings), len(trainings))
        return min(worker_count(self.options, seeds_per_pass=size), most)

    def _next(self) -> Job | None:
        """Take the first job that can start; None if all wait for an encoding."""
        for index, job in enumerate(self.waiting):
            if isinstance(job, EncodeJob) or not self.encoding & _tasks(job):
                del self.waiting[index]
                return job
        return None

    def _with_news(self) -> list[_Worker]:
        busy = [worker for worker in self.workers if worker.job]
        ready = wait([worker.connection for worker in busy])
        return [worker for worker in busy if worker.connection in ready]

    def _received(self, worker: _Worker) -> Event:
        try:
            event: Event = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            event = self._replaced(worker)
        if event.kind == "fatal":
            raise UserError(event.text, event.hint)
        if isinstance(worker.job, EncodeJob):
            if event.kind in ("broken", "lost"):
                self._give_up(worker.job.task)
            if event.kind in ("idle", "lost"):
                self.encoding.discard(worker.job.task)
        if event.kind in ("idle", "lost"):
            worker.job = None
        return event

    def _replaced(self, worker: _Worker) -> Event:
        worker.process.join(_GRACE_SECONDS)
        code = worker.process.exitcode
        fresh = self._start(worker.device)
        worker.process, worker.connection = fresh.process, fresh.connection
        return Event(kind="lost", text=f"a worker ended unexpectedly (exit code {code})")

    def _give_up(self, task: str) -> None:
        """Drop the trainings of a task without hidden states."""
        self.waiting = deque(
            job for job in self.waiting if isinstance(job, EncodeJob) or task not in _tasks(job)
        )

    def close(self) -> None:
        """Let idle workers end and stop the others: a record is complete or absent."""
        for worker in self.workers:
            worker.connection.close()
        for worker in self.workers:
            if worker.job is not None:
                worker.process.terminate()
            worker.process.join(_GRACE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()


def _tasks(job: TrainJob | ModelJob) -> set[str]:
    return {cell.spec.task for cell in job.tasks}


def _started(options: RunOptions) -> _Worker:
    # Spawned, not forked: a forked copy of a process that used threads or CUDA may hang.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    # A daemonic process may have no children, which a training on several processes needs.
    alone = options.processes <= 1
    process = context.Process(target=serve, args=(theirs, options), daemon=alone)
    with environment(HEAP):
        process.start()
    theirs.close()
    return _Worker(process=process, connection=ours, device=options.device)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Add these variables to the environment inside the block; a user's own value wins."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def serve(connection: Connection, options: RunOptions) -> None:
    """Take jobs from the pipe until the parent closes it or dies."""
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A cluster warns all processes of a task before its time limit: the parent decides here too.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    work: Callable[[Job], Iterator[Event]] | None = None
    try:
        while True:
            job: Job = connection.recv()
            work = work or _runner(options)
            for event in _events(work, job):
                connection.send(event)
    except UserError as error:
        # The parent may have left after the same error of another worker.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(Event(kind="fatal", text=error.message, hint=error.hint))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _events(work: Callable[[Job], Iterator[Event]], job: Job) -> Iterator[Event]:
    try:
        yield from work(job)
    except UserError:
        raise
    except Exception:
        lines = traceback.format_exc().strip().splitlines()[-_ERROR_LINES:]
        yield Event(kind="broken", text="\n".join(lines))
    yield Event(kind="idle")


def _runner(options: RunOptions) -> Callable[[Job], Iterator[Event]]:
    import torch

    from fusionbench.launchers.runner import Runner

    torch.set_num_threads(1)
    # A GPU's compiler advises TF32 in every worker; float32 is kept so that numbers agree.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    return Runner(options).run
