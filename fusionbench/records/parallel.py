"""Jobs in other processes: forked ones, one for each core, or a fresh one for a stranger's code.

A forked worker inherits the memory that its jobs read, 100,000 records for example, and sends back
their results in the order of the jobs. Memory is copied only where it is written to. Every child
ends with its parent, however that ends.
"""

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, TypeVar

from fusionbench.api.errors import UserError

MOST = 2
"""Maximum number of forked workers; reference counts make each copy most pages it reads. The report
of 100,000 records needs 1.7 GiB with two workers and 1.2 GiB without."""
Result = TypeVar("Result")
Work = Callable[[], Result]
# The jobs of a worker; empty in the process that the user started.
_jobs: Sequence[Callable[[], object]] = ()


def processes() -> int:
    """Number of worker processes; 1: all jobs run in this process.

    Outside Linux system libraries may not survive a fork; a lock that another thread holds at that
    moment survives it nowhere.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(MOST, cores())


def cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def in_order(jobs: Sequence[Work[Result]]) -> Iterator[Result]:
    """The result of each job, from as many processes as `processes` allows.

    The error of a job is raised in its place. Jobs of a killed worker run in this process.
    """
    several = min(processes(), len(jobs))
    if several < 2:
        for job in jobs:
            yield job()
        return
    pool = ProcessPoolExecutor(several, get_context("fork"), _adopt, (jobs,))
    try:
        waiting = _submitted(pool, len(jobs))
        for job, future in zip(jobs, waiting, strict=True):
            try:
                found = future.result()
            except BrokenProcessPool:
                found = job()
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, count: int) -> list[Future[Any]]:
    with warnings.catch_warnings():
        # Python counts system threads too, but OpenBLAS stops its own before a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return [pool.submit(_run, index) for index in range(count)]


def _adopt(jobs: Sequence[Work[Result]]) -> None:
    """Initialise a worker."""
    global _jobs  # noqa: PLW0603  (a job cannot be pickled)
    _jobs = jobs
    die_with_parent()
    # Ctrl-C reaches every process: workers end silently, the parent reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(index: int) -> object:
    return _jobs[index]()


_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


@contextmanager
def without_main() -> Iterator[None]:
    """Processes started inside the block do not import the user's script, of which they need none.

    Without it each worker would run a script again that has no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def die_with_parent() -> None:
    """Let the kernel kill this child process when its parent dies; elsewhere a thread watches.

    A server of forks is no parent to wait for: it lives as long as any child that it has made.
    """
    parent = parent_process()
    if parent is None:
        return
    asked = False
    if sys.platform == "linux" and os.getppid() == parent.pid:
        with suppress(OSError, AttributeError):
            asked = ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) == 0
    if not asked:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()
    elif wait([parent.sentinel], 0):
        # It died before the kernel was asked.
        os._exit(1)


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def ending(code: int | None) -> str:
    """How a process ended, for people: `exit code 1`, or the signal of a negative code."""
    if code is None or code >= 0:
        return f"exit code {code}"
    if code == -signal.SIGKILL:
        return "signal SIGKILL, as the system sends when memory runs out"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


class LostError(RuntimeError):
    """A child process ended, or did not end in time, without a result."""


_GRACE_SECONDS = 5.0


def in_child(
    function: Callable[..., Result], *arguments: object, seconds: float | None = None
) -> Result:
    """The result of a function in a fresh process, which contains crashes and endless loops.

    Function, arguments and result are pickled; what the child prints goes to standard error.
    Raises LostError where the child ends or takes longer than `seconds`, and RuntimeError with the
    text of whatever the function raises, `SystemExit` included.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, function, arguments), daemon=True)
    with without_main():
        child.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise LostError(f"did not end within {seconds:.0f} s")
        sound, found = ours.recv()
    except (EOFError, OSError, ValueError) as error:
        child.join(_GRACE_SECONDS)
        raise LostError(f"ended the process ({ending(child.exitcode)})") from error
    finally:
        child.kill()
        child.join()
        ours.close()
    if not sound:
        raise RuntimeError(str(found))
    return found


def _child(connection: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with redirect_stdout(sys.stderr):
            answer = (True, function(*arguments))
    # Including SystemExit: sys.exit in a plug-in is a failure.
    except BaseException as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        answer = (False, f"{kind}{error}")
    connection.send(answer)
