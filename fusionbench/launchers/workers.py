"""The processes that run jobs: how they start, what they print, and how they end with their parent.

What a worker or a plug-in in it prints goes to standard error; its last lines are kept, so that a
cell whose worker died can quote them.
"""

import errno
import faulthandler
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from multiprocessing import Pipe, get_context, parent_process, set_forkserver_preload
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

from fusionbench.api.errors import FatalError, UserError
from fusionbench.launchers.jobs import Company, Event, Job, company_of
from fusionbench.launchers.limits import uses_gpu
from fusionbench.records.cell import RunOptions
from fusionbench.records.files import cache_dir
from fusionbench.records.parallel import die_with_parent, ending, without_main

_GRACE_SECONDS = 5.0
"""Time in which a worker may end by itself."""
_ERROR_LINES, _TAIL_LINES, _TAIL_BYTES = 12, 8, 4096
_MIB = 2**20
HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * _MIB),
    "MALLOC_TRIM_THRESHOLD_": str(2048 * _MIB - 1),
    "MALLOC_TOP_PAD_": str(64 * _MIB),
}
"""Environment of workers: glibc keeps freed memory instead of returning it at every step. By
default that costs 12,000 to 30,000 page faults a cell, 7 to 25 % of its processor time."""


_PRELOADED = "fusionbench.launchers.runner"
"""What the server of forks imports, once for all workers."""


@dataclass(kw_only=True)
class Worker:
    """A process, what connects it with this one, and the last that it printed."""

    process: BaseProcess
    connection: Connection
    log: Connection
    device: str = "auto"
    company: Company | None = None
    """The plug-ins whose code it has run; None: it has run nothing yet."""
    printed: bytearray = field(default_factory=bytearray)
    silent: bool = False
    """Whether nobody can print any more."""

    @staticmethod
    def start(options: RunOptions) -> "Worker":
        """A fresh process that waits for jobs."""
        ours, theirs = Pipe()
        log, printed = Pipe(duplex=False)
        set_forkserver_preload([_PRELOADED])
        try:
            # A copy of a process that has touched CUDA hangs; one of a mere import does not.
            way = "spawn" if uses_gpu(options) else "forkserver"
            process = _started(way, theirs, printed, options)
        except OSError:
            # The server of forks needs a socket in the temporary folder.
            process = _started("spawn", theirs, printed, options)
        theirs.close()
        printed.close()
        return Worker(process=process, connection=ours, log=log, device=options.device)

    def send(self, job: Job) -> bool:
        """Hand over a job; False if the process is gone."""
        self.company = company_of(job)
        try:
            self.connection.send(job)
        except OSError:
            return False
        return True

    def receive(self) -> Event | None:
        """Its next event; None if it is gone or sent something else."""
        try:
            found = self.connection.recv() if self.connection.poll() else None
        # A message that was torn when the process died, or one that a plug-in has made.
        except Exception:
            return None
        return found if isinstance(found, Event) else None

    def listen(self) -> None:
        """Pass on what it has printed since."""
        with suppress(OSError, ValueError):
            while not self.silent and self.log.poll():
                text = os.read(self.log.fileno(), 2**16)
                self.silent = not text
                self.printed = (self.printed + text)[-_TAIL_BYTES:]
                sys.stderr.write(_plain(text))
                sys.stderr.flush()

    def tail(self) -> str:
        """The last lines that it printed."""
        lines = _plain(bytes(self.printed)).strip().splitlines()[-_TAIL_LINES:]
        return "\n".join(lines)

    def end(self) -> str:
        """Wait for a process that is gone; its last lines and its exit code."""
        self.process.join(_GRACE_SECONDS)
        self.listen()
        how = ending(self.process.exitcode)
        self.stop()
        return f"{self.said()}the worker process ended unexpectedly ({how})"

    def said(self) -> str:
        """Its last lines as the start of a reason, whose last line is the one that lists show."""
        tail = self.tail()
        return f"its last lines:\n{tail}\n" if tail else ""

    def stop(self) -> None:
        """Kill the process: a record is complete or absent."""
        self.process.kill()
        self.process.join(_GRACE_SECONDS)
        self.listen()
        self.connection.close()
        self.log.close()


def _started(
    way: str, connection: Connection, printed: Connection, options: RunOptions
) -> BaseProcess:
    # A daemonic process may have no children, which a training on several processes needs.
    alone = options.processes <= 1
    context: Any = get_context(way)
    process: BaseProcess = context.Process(
        target=serve, args=(connection, printed, options), daemon=alone
    )
    with environment(HEAP), without_main():
        process.start()
    return process


def close_all(workers: list[tuple[Worker, bool]]) -> None:
    """Let idle workers end and stop those that are at work (True)."""
    for worker, _ in workers:
        worker.connection.close()
    for worker, busy in workers:
        if busy:
            worker.process.terminate()
        # Closed before the process ends: nobody reads what it prints, and it must not wait.
        worker.listen()
        worker.log.close()
        worker.process.join(_GRACE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(_GRACE_SECONDS)


def _plain(text: bytes) -> str:
    """Text without the sequences that a terminal obeys."""
    decoded = text.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return "".join(one for one in decoded if one.isprintable() or one in "\n\t")


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


def serve(connection: Connection, printed: Connection, options: RunOptions) -> None:
    """Take jobs from the pipe until the parent closes it or dies."""
    die_with_parent()
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A cluster warns all processes of a task before its time limit: the parent decides here too.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    for descriptor in (1, 2):
        os.dup2(printed.fileno(), descriptor)
    printed.close()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(ValueError):
                stream.reconfigure(line_buffering=True)
    faulthandler.enable()
    work: Callable[[Job], Iterator[Event]] | None = None
    try:
        while True:
            job: Job = connection.recv()
            work = work or runner_of(options)
            for event in events_of(work, job):
                connection.send(event)
    except UserError as error:
        # The parent may have left after the same error of another worker.
        with suppress(OSError):
            connection.send(Event(kind="fatal", text=error.message, hint=error.hint))
    except (EOFError, OSError):
        return


def events_of(work: Callable[[Job], Iterator[Event]], job: Job) -> Iterator[Event]:
    """The events of a job, with `idle` at its end, whatever its code raises.

    Raises UserError for what makes further work impossible; of a job with code of plug-ins only
    what the disk or the device says.
    """
    events = work(job)
    try:
        # Not `yield from`, which closes the job: its end may raise anything.
        for event in events:  # noqa: UP028
            yield event
    except GeneratorExit:
        with suppress(Exception):
            cast(Generator[Event, None, None], events).close()
        raise
    except FatalError:
        raise
    except (Exception, SystemExit) as error:
        if not company_of(job):
            _raise_fatal(error)
        yield Event(kind="broken", text=last_lines(error))
    except KeyboardInterrupt as error:
        # Ctrl-C does not reach a worker: a plug-in has raised it.
        if parent_process() is None:
            raise
        yield Event(kind="broken", text=last_lines(error))
    yield Event(kind="idle")


def _raise_fatal(error: BaseException) -> None:
    """Raise what ends the run: an error for people, or a full disk."""
    if isinstance(error, UserError):
        raise error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        # A full disk under the results is a FatalError already: this is the cache.
        place = error.filename or cache_dir()
        hint = "set FUSIONBENCH_CACHE to a larger disk"
        raise FatalError(f"no space left on the disk of {place}", hint) from error


def last_lines(error: BaseException) -> str:
    """The end of an error's traceback; of an error for people its text."""
    if isinstance(error, UserError):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    text = "".join(traceback.format_exception(error)).strip()
    return "\n".join(text.splitlines()[-_ERROR_LINES:])


def runner_of(options: RunOptions) -> Callable[[Job], Iterator[Event]]:
    """What runs the jobs in this process. It loads torch."""
    import torch

    from fusionbench.launchers.runner import Runner

    torch.set_num_threads(1)
    # A GPU's compiler advises TF32 in every worker; float32 is kept so that numbers agree.
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
    return Runner(options).run
