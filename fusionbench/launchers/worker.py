"""A worker process: takes jobs from a pipe, trains cells, writes their records.

Every cell runs in a worker with one thread, however many workers there are, so that the number of
workers changes no result.
"""

import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

from fusionbench.api.errors import UserError
from fusionbench.launchers.jobs import EncodeJob, Event, Job, WorkerSetup

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

    from fusionbench.launchers.desk import Desk
    from fusionbench.launchers.memory import keep_freed_memory

    keep_freed_memory()
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
