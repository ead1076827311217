"""Independent pieces of work on all cores, by processes that inherit what they work on."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

T = TypeVar("T")
_MOST = 4
"""Each process may come to own a copy of what it looks at."""


def spread(work: Sequence[Callable[[], T]]) -> list[T]:
    """The result of each piece, in order; the same whatever the number of processes.

    Processes are forked: nothing but results is sent. What one of them lost or could not do is
    done again here, so that errors are raised as ever, and so is everything on a single core, in a
    program with threads (their locks would be copied) and on systems without a safe fork.
    """
    found = dict(_forked(work, min(_MOST, len(work), _cores())) if _may_fork() else ())
    return [found[place] if place in found else piece() for place, piece in enumerate(work)]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _may_fork() -> bool:
    return sys.platform.startswith("linux") and _cores() > 1 and threading.active_count() == 1


def _forked(work: Sequence[Callable[[], T]], count: int) -> Iterator[tuple[int, T]]:
    context = multiprocessing.get_context("fork")
    following = context.Value("i", 0)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_serve, args=(work, following, sender), daemon=True)
        for _, sender in pipes
    ]
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        yield from _received([receiver for receiver, _ in pipes])
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _serve(work: Sequence[Callable[[], T]], following: Any, results: Connection) -> None:
    # The parent hears of Ctrl-C and ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        with following.get_lock():
            place, following.value = following.value, following.value + 1
        if place >= len(work):
            return
        # The parent meets the same error, and tells of it.
        with suppress(Exception):
            results.send((place, work[place]()))


def _received(pipes: Sequence[Connection]) -> Iterator[tuple[int, Any]]:
    while pipes:
        ready = wait(pipes)
        for pipe in [one for one in pipes if one in ready]:
            try:
                yield pipe.recv()
            except (EOFError, OSError):
                pipes = [one for one in pipes if one is not pipe]
