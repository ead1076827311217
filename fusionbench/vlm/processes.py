"""The processes of one training: torch's process group, started here or by a launcher outside.

Gloo on the CPU, NCCL on CUDA devices. Launchers (torchrun, `accelerate launch`) say who a process
is by RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Some of them start one process
where several were asked for and say nothing, so the size of the world is always compared with the
number that was asked for.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from fusionbench.api.errors import UserError
from fusionbench.api.types import Unsupported
from fusionbench.records.parallel import ending, without_main

T = TypeVar("T")

_LOOPBACK = "127.0.0.1"
_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
_LONGEST_WAIT = timedelta(hours=2)
"""Time a process waits for the others in a collective operation."""
_WORK = "fusionbench/work"
_ARRIVAL = timedelta(minutes=5)
"""Time in which all processes of a world must have come."""
_GRACE_SECONDS = 5.0
"""Time in which a process may end by itself."""
_ECHO_SECONDS = 1.0
"""Time in which the failure of one process reaches the others."""
_SAME_TYPE = (UserError, Unsupported, FloatingPointError)
"""Errors that reach the caller as they are; all others as a RuntimeError that quotes them."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a training, seen from one of them. The default is a process alone."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    device: torch.device = torch.device("cpu")
    """Device of this process."""
    store: dist.Store | None = None
    """Where the processes met; None for a process alone."""

    @property
    def main(self) -> bool:
        """True in the process that writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: T) -> T:
        """The value of rank 0, any object that can be pickled, in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def total(self, value: Float[Tensor, "*dim"]) -> Float[Tensor, "*dim"]:
        """The sum of a tensor over all processes, in every process."""
        if self.size == 1:
            return value
        summed = value.clone()
        dist.all_reduce(summed)
        return summed


def lead(world: World, target: Callable[..., T], args: Sequence[Any] = ()) -> T:
    """Run `target(world, *args)` here, in rank 0, and in the processes that `follow`."""
    _call(world)
    world.broadcast((target, args))
    return target(world, *args)


def dismiss(world: World) -> None:
    """Let the processes return that `follow` rank 0."""
    _call(world)
    world.broadcast(None)


def _call(world: World) -> None:
    """Tell the processes that `follow` that there is work."""
    if world.store is not None:
        world.store.set(f"{_WORK}/{world.store.add(_WORK, 1)}", "1")


def _await_call(world: World, number: int) -> None:
    """Wait for call `number`, however long rank 0 scores and tunes; its end raises an error."""
    while world.store is not None:
        # The store has run out of time.
        with suppress(dist.DistStoreError):
            world.store.wait([f"{_WORK}/{number}"], _LONGEST_WAIT)
            return


def follow(world: World) -> None:
    """Run in this process what rank 0 leads, one after the other, until it dismisses.

    A launcher starts the whole command in each process; only rank 0 plans and records. Errors that
    every process raises alike (a loss that is not finite, a method that does not fit) are left to
    rank 0.
    """
    for number in count(1):
        _await_call(world, number)
        work = world.broadcast(None)
        if work is None:
            return
        target, args = work
        with suppress(FloatingPointError, Unsupported):
            target(world, *args)


@contextmanager
def joined(
    expected: int,
    *,
    device: str = "auto",
    store: dist.Store | None = None,
    arrival: timedelta = _ARRIVAL,
) -> Iterator[World]:
    """The world of the launcher that started this process, open inside the block.

    `store`: where the processes meet; None: at MASTER_ADDR, MASTER_PORT.
    Raises UserError if the world has another size than `expected`, if a variable is missing or
    wrong, if the machine has too few CUDA devices, or if the others do not come in time.
    """
    size = _declared("WORLD_SIZE", 1)
    if size != expected:
        raise _wrong_size(expected, size)
    if size == 1:
        yield World(device=_device(device, 0))
        return
    rank = _declared("RANK")
    local = _declared("LOCAL_RANK", rank)
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank}, and WORLD_SIZE {size} allows 0 to {size - 1}")
    own = _device(device, local, _declared("LOCAL_WORLD_SIZE", size))
    found = store if store is not None else _met(rank, size, arrival)
    _roll_call(found, rank, size, arrival)
    cuda = own.type == "cuda"
    if cuda:
        torch.cuda.set_device(own)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=found, rank=rank, world_size=size, timeout=_LONGEST_WAIT,
    )  # fmt: skip
    try:
        yield World(rank=rank, size=size, device=own, store=found)
    finally:
        dist.destroy_process_group()


def _declared(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError as error:
        came = f"is {text!r}" if text is not None else "is not set"
        raise UserError(
            f"the environment variable {name} {came}; a launcher sets it to a whole number",
            "start with torchrun, or without a launcher and with --processes N",
        ) from error


def _wrong_size(expected: int, size: int) -> UserError:
    said = f"WORLD_SIZE={size}" if "WORLD_SIZE" in os.environ else "no WORLD_SIZE, so one process"
    hint = "the launcher's number of processes and --processes must be equal"
    if size < expected:
        hint = (
            "without a launcher --processes starts them itself; torchrun --nproc-per-node works, "
            "`accelerate launch --cpu` starts one process whatever --num_processes says"
        )
    asked = f"{expected} process{'es' if expected > 1 else ''}"
    return UserError(f"{asked} asked for, and the launcher declares {said}", hint)


def _met(rank: int, size: int, arrival: timedelta) -> dist.Store:
    """The store at MASTER_ADDR and MASTER_PORT."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"the environment variable {name} is not set", "start with torchrun")
    try:
        meeting = dist.rendezvous("env://", rank, size, timeout=arrival)
        found: dist.Store = next(iter(meeting))[0]
    except (dist.DistError, RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        line = str(error).strip().splitlines()[0]
        raise UserError(
            f"rank {rank} of {size} met no other process at {place}: {line}",
            "MASTER_ADDR and MASTER_PORT must name the machine of rank 0 and a free port",
        ) from error
    return found


def _roll_call(store: dist.Store, rank: int, size: int, arrival: timedelta) -> None:
    names = [f"fusionbench/here/{each}" for each in range(size)]
    store.set(names[rank], "1")
    try:
        store.wait(names, arrival)
    except (dist.DistError, RuntimeError) as error:
        missing = [n for n, name in enumerate(names) if not store.check([name])]
        raise UserError(
            f"of {size} processes rank {', '.join(map(str, missing))} did not come within "
            f"{arrival.total_seconds():g} s"
        ) from error


def _device(name: str, local: int, needed: int = 1) -> torch.device:
    """The device of a process by its number on this machine.

    Raises UserError if fewer CUDA devices exist than processes on this machine.
    """
    wanted = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    )
    if wanted.type != "cuda":
        return wanted
    found = torch.cuda.device_count()
    if max(needed, local + 1) > found:
        raise UserError(
            f"{max(needed, local + 1)} processes on a machine with {found} CUDA "
            f"device{'' if found == 1 else 's'}",
            "each process needs a CUDA device of its own; --device cpu has no such limit",
        )
    return torch.device("cuda", local) if needed > 1 or wanted.index is None else wanted


@dataclass(kw_only=True)
class _Rank:
    number: int
    process: BaseProcess
    connection: Connection


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """How a process failed; picklable whatever was raised."""

    rank: int
    line: str
    """Last line of the traceback, or how the process ended."""
    trace: str = ""
    error: Exception | None = None
    """Only an error of `_SAME_TYPE`."""
    blame: int = 0
    """0: an error of its own, 1: ended without a word, 2: may be an echo of another's end."""
    time: float = 0.0
    """Monotonic clock of the machine, in seconds."""


def start(
    count: int, target: Callable[..., T], args: Sequence[Any] = (), *, device: str = "auto"
) -> list[T]:
    """Run `target(world, *args)` in `count` new processes; return its values by rank.

    `target` and `args` are pickled: a function of a module. The first error ends all processes;
    UserError, Unsupported and FloatingPointError are raised again as they are, any other as a
    RuntimeError with the last line of its traceback, the whole of it in a note. Processes end with
    the caller, even where it is killed. A daemonic process of `multiprocessing` may not call this.
    """
    _device(device, count - 1, count)
    store = dist.TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False)
    ranks: list[_Rank] = []
    try:
        for number in range(count):
            ranks.append(_started(number, count, store.port, device, target, args))
        values = _results(ranks)
        for rank in ranks:
            rank.process.join(_GRACE_SECONDS)
        return values
    finally:
        _stop(ranks)


def _started(number: int, count: int, port: int, device: str, target: Any, args: Any) -> _Rank:
    # Spawned, not forked: a forked copy of a process that used threads or CUDA may hang.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_serve, args=(theirs, number, count, port, device, target, args), daemon=True
    )
    with _without_warnings(), without_main():
        process.start()
    theirs.close()
    return _Rank(number=number, process=process, connection=ours)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Processes started in this block print errors of torch's C++ part, not its warnings.

    DDP warns where it looks for unused parameters and finds none. A user's own level is kept.
    """
    own = _LOG_LEVEL in os.environ
    os.environ.setdefault(_LOG_LEVEL, "ERROR")
    try:
        yield
    finally:
        if not own:
            del os.environ[_LOG_LEVEL]


def _results(ranks: Sequence[_Rank]) -> list[Any]:
    """The value of each process. Raises the error of the first that fails."""
    values: dict[int, Any] = {}
    while len(values) < len(ranks):
        waiting = [rank for rank in ranks if rank.number not in values]
        ready = wait([rank.connection for rank in waiting])
        for rank in waiting:
            if rank.connection not in ready:
                continue
            value = _received(rank)
            if isinstance(value, _Failure):
                others = [other for other in waiting if other is not rank]
                raise _raised([value, *_echoes(others)], len(ranks))
            values[rank.number] = value
    return [values[rank.number] for rank in ranks]


def _received(rank: _Rank) -> Any:
    """The value or the failure that a process sent; a failure if it ended without a word."""
    try:
        return pickle.loads(rank.connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        rank.process.join(_GRACE_SECONDS)
        line = f"ended by {ending(rank.process.exitcode)}"
        return _Failure(rank=rank.number, line=line, blame=1, time=time.monotonic())


def _echoes(ranks: Sequence[_Rank]) -> list[_Failure]:
    """Failures of other processes that follow within a second."""
    waiting, found = list(ranks), []
    until = time.monotonic() + _ECHO_SECONDS
    while waiting and (left := until - time.monotonic()) > 0:
        ready = wait([rank.connection for rank in waiting], left)
        for rank in [rank for rank in waiting if rank.connection in ready]:
            waiting.remove(rank)
            found.append(_received(rank))
    return [value for value in found if isinstance(value, _Failure)]


def _raised(failures: Sequence[_Failure], size: int) -> Exception:
    """The error for the failure that came before the others."""
    first = min(failures, key=lambda failure: (failure.blame, failure.time))
    where = f"process {first.rank} of {size}"
    error = first.error or RuntimeError(f"{where}: {first.line}")
    error.add_note(f"{where}:\n{first.trace}" if first.trace else where)
    return error


def _stop(ranks: Sequence[_Rank]) -> None:
    for rank in ranks:
        rank.connection.close()
        if rank.process.is_alive():
            rank.process.terminate()
    for rank in ranks:
        rank.process.join(_GRACE_SECONDS)
        if rank.process.is_alive():
            rank.process.kill()
            rank.process.join()


def _serve(
    connection: Connection, number: int, count: int, port: int, device: str, target: Any, args: Any
) -> None:
    """Be one process of a world that `start` made."""
    # Ctrl-C reaches the whole process group; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": _LOOPBACK, "MASTER_PORT": str(port),
    }  # fmt: skip
    try:
        store = dist.TCPStore(_LOOPBACK, port, is_master=False)
        with joined(count, device=device, store=store) as world:
            # Plain pickle: the tensors' own would need this process for as long as they live.
            connection.send_bytes(pickle.dumps(target(world, *args)))
            world.barrier()
    except Exception as error:
        # Not by an ordinary exit: closing a broken group may wait for ever.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send_bytes(pickle.dumps(_failure(number, error)))
        os._exit(1)


def _failure(number: int, error: Exception) -> _Failure:
    return _Failure(
        rank=number,
        line=traceback.format_exception_only(error)[-1].strip(),
        trace=traceback.format_exc(),
        error=error if type(error) in _SAME_TYPE else None,
        blame=2 if isinstance(error, RuntimeError) else 0,
        time=time.monotonic(),
    )


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
