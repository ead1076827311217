"""Jobs in forked worker processes, one for each core, with results in the order of the jobs.

A worker inherits the memory that its jobs read, 100,000 records for example, and sends back their
results. Memory is copied only where it is written to.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

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
    # Ctrl-C reaches every process: workers end silently, the parent reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(index: int) -> object:
    return _jobs[index]()
