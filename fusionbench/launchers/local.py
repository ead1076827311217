"""Worker processes on this machine, each with a pipe; they die with their parent."""

import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from fusionbench.api.errors import UserError
from fusionbench.launchers.jobs import CellJob, EncodeJob, Event, Job, WorkerSetup

_GRACE = 5.0
"""Seconds a worker gets to end by itself."""


@dataclass(kw_only=True)
class _Hand:
    process: BaseProcess
    connection: Connection
    job: Job | None = None


class LocalPool:
    """A fixed number of workers; jobs start in order, cells after their task's encoding."""

    def __init__(self, workers: int, setup: WorkerSetup) -> None:
        self.setup = setup
        self.hands = [_hire(setup) for _ in range(workers)]
        self.waiting: deque[Job] = deque()
        self.encoding: set[str] = set()

    def run(self, jobs: Sequence[Job], report: Callable[[Event], None]) -> None:
        """Do all jobs; `report` hears every event. A worker that dies is replaced.

        Raises UserError for what makes all further work pointless (no disk, no such device).
        """
        self.waiting = deque(jobs)
        self.encoding = {job.task for job in jobs if isinstance(job, EncodeJob)}
        while self.waiting or any(hand.job for hand in self.hands):
            for hand in self.hands:
                if hand.job is None and (job := self._next()) is not None:
                    hand.job = job
                    hand.connection.send(job)
            for hand in self._with_news():
                report(self._hear(hand))

    def _next(self) -> Job | None:
        """The first job that can start; cells wait until their task is encoded."""
        for index, job in enumerate(self.waiting):
            if isinstance(job, EncodeJob) or job.task not in self.encoding:
                del self.waiting[index]
                return job
        return None

    def _with_news(self) -> list[_Hand]:
        busy = [hand for hand in self.hands if hand.job]
        ready = wait([hand.connection for hand in busy])
        return [hand for hand in busy if hand.connection in ready]

    def _hear(self, hand: _Hand) -> Event:
        try:
            event: Event = hand.connection.recv()
        except (EOFError, ConnectionResetError):
            event = self._replace(hand)
        if event.kind == "fatal":
            raise UserError(event.text, event.hint)
        if event.kind == "broken" and isinstance(hand.job, EncodeJob):
            self._give_up(hand.job.task)
        if event.kind in ("idle", "lost"):
            if isinstance(hand.job, EncodeJob):
                self.encoding.discard(hand.job.task)
            hand.job = None
        return event

    def _replace(self, hand: _Hand) -> Event:
        hand.process.join(_GRACE)
        code = hand.process.exitcode
        if isinstance(hand.job, EncodeJob):
            self._give_up(hand.job.task)
        fresh = _hire(self.setup)
        hand.process, hand.connection = fresh.process, fresh.connection
        return Event(kind="lost", text=f"a worker ended unexpectedly (exit code {code})")

    def _give_up(self, task: str) -> None:
        """Without hidden states the cells of a task cannot run."""
        self.waiting = deque(
            job for job in self.waiting if not (isinstance(job, CellJob) and job.task == task)
        )

    def close(self) -> None:
        """Let idle workers end, and stop those at work: what they write is whole or not there."""
        for hand in self.hands:
            hand.connection.close()
        for hand in self.hands:
            if hand.job is not None:
                hand.process.terminate()
            hand.process.join(_GRACE)
            if hand.process.is_alive():
                hand.process.kill()


@contextmanager
def local_pool(workers: int, setup: WorkerSetup) -> Iterator[LocalPool]:
    """A pool that is closed whatever happens."""
    pool = LocalPool(workers, setup)
    try:
        yield pool
    finally:
        pool.close()


def _hire(setup: WorkerSetup) -> _Hand:
    # Spawned, not forked: a forked copy of a process that used threads or CUDA may hang.
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, setup), daemon=True)
    process.start()
    theirs.close()
    return _Hand(process=process, connection=ours)


# A worker process: takes jobs from a pipe, trains cells, writes their records.
#
# Every cell runs in a worker with one thread, however many workers there are, so that the number of
# workers changes no result.


_ERROR_LINES = 12


def serve(connection: Connection, setup: WorkerSetup) -> None:
    """Work until the parent closes the pipe or dies."""
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work: Callable[[Job], Iterator[Event]] | None = None
    try:
        while True:
            job: Job = connection.recv()
            work = work or _start(setup)
            for event in _events(work, job):
                connection.send(event)
    except UserError as error:
        # Another worker may have said so first, and the parent has left.
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


def _start(setup: WorkerSetup) -> Callable[[Job], Iterator[Event]]:
    import torch

    from fusionbench.launchers.runner import Desk

    torch.set_num_threads(1)
    # A GPU's compiler advises it in every worker; float32 is kept whole so that numbers agree.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    desk = Desk(setup.options)

    def work(job: Job) -> Iterator[Event]:
        if isinstance(job, EncodeJob):
            desk.prepare(job)
            return
        yield from desk.run(job)

    return work
