"""Work shared by forked copies of this process, one for each core, with its results in order.

A copy inherits what the jobs look at, 100,000 records for example, and sends back what they give.
Memory is copied only where it is written to.
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
"""Copies of one process: each comes to own much of what it looks at. With two, the report of
100,000 records needs 1.7 GiB, and 1.2 GiB with none."""
Result = TypeVar("Result")
Job = Callable[[], Result]
# What this copy was made for; empty in the process that the user started.
_jobs: Sequence[Callable[[], object]] = ()


def processes() -> int:
    """How many copies may work; 1: the work is done here.

    Elsewhere than on Linux system libraries may not survive a fork, and nowhere a lock that another
    thread holds at that moment.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(MOST, cores())


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0))


def in_order(jobs: Sequence[Job[Result]]) -> Iterator[Result]:
    """What the jobs give, job by job, worked out by as many processes as may work.

    The error of a job is raised in its place. What a killed process leaves undone is done here.
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
        # Python counts threads of the system too, but OpenBLAS stops its own before a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return [pool.submit(_run, index) for index in range(count)]


def _adopt(jobs: Sequence[Job[Result]]) -> None:
    """The first thing that a copy does."""
    global _jobs  # noqa: PLW0603  (a copy has one purpose, and a job cannot be sent)
    _jobs = jobs
    # Ctrl-C reaches every process: a copy goes silently, the one the user started says so.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(index: int) -> object:
    return _jobs[index]()
