"""The state of a process that one training can change under the next: compared, named and reset.

A check takes about a millisecond. What cannot be set back (threads that go on, a computation that
gives other numbers) makes the process unfit for a further training.
"""

import builtins
import gc
import inspect
import locale
import math
import os
import random
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import is_not
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusionbench.api.encoders import Encoder
from fusionbench.api.seeding import seed_of

_LONGEST = 60
"""Characters of a value in a note."""
_MOST_NAMED = 8
_SIGNALS = ("SIGTERM", "SIGINT", "SIGALRM", "SIGCHLD", "SIGSEGV")
_LIMITS = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_FSIZE")
_SDP = ("flash", "mem_efficient", "math", "cudnn")
_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One value of the process; `write` is None for what cannot be set back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object] | None
    shown: bool = True
    """Whether the values may be named: those of the environment may be secret."""
    numeric: bool = False
    """Whether it changes numbers by itself; the engine never changes these."""

    def now(self) -> Any:
        """The present value; an error is a value of its own."""
        try:
            return self.read()
        except Exception as error:
            return f"{type(error).__name__}"

    def describe(self, before: Any, after: Any) -> str:
        """`torch.set_num_threads: 1 -> 4`."""
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [key for key in before | after if before.get(key) != after.get(key)]
            return f"{self.name}: {', '.join(map(str, keys[:_MOST_NAMED]))}"
        return f"{self.name}: {before} -> {after}"[:_LONGEST] if self.shown else self.name


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What was found changed and set back, and what could not be set back."""

    reset: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()

    def notes(self) -> tuple[str, ...]:
        """One sentence for the record of the cell; none where nothing changed."""
        parts = [(self.reset, "was set back"), (self.lasting, "the process was left")]
        return tuple(
            f"the method changed the state of its process ({'; '.join(names[:_MOST_NAMED])}), {end}"
            for names, end in parts
            if names
        )

    def __add__(self, other: "Changes") -> "Changes":
        """Both, each name once."""
        return Changes(
            reset=tuple(dict.fromkeys((*self.reset, *other.reset))),
            lasting=tuple(dict.fromkeys((*self.lasting, *other.lasting))),
        )


class Guard:
    """The state of this process as it is now, to which `restore` sets it back.

    Compilers and libraries of the engine change some of it when they are first needed (functions,
    environment, threads). That part is compared for code of plug-ins only, with its state at the
    last `renew`.
    """

    def __init__(self) -> None:
        found = [(switch, switch.now()) for switch in switches()]
        self._numeric = [one for one in found if one[0].numeric]
        self._others = [one for one in found if not one[0].numeric]
        # The first optimiser of a class wraps its `step`.
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
        self._spaces: list[_Namespace] = []
        self._threads: set[int | None] = set()
        self._expected = _Computation()

    def renew(self) -> None:
        """Take what a plug-in finds here as the state to set back."""
        self._others = [(switch, switch.now()) for switch, _ in self._others]
        self._spaces = [_Namespace(name, space) for name, space in _namespaces()]
        self._threads = _threads()

    def restore(self, *, thorough: bool) -> Changes:
        """Set back what differs from the start; the random streams are left to `reseed`."""
        reset: list[str] = []
        lasting: list[str] = []
        for switch, before in (*self._numeric, *(self._others if thorough else ())):
            after = switch.now()
            if not _same(before, after):
                done = _set_back(switch, before)
                (reset if done else lasting).append(switch.describe(before, after))
        if thorough:
            for space in self._spaces:
                reset += space.restore()
            lasting += [f"thread {one.name!r}" for one in threading.enumerate()
                        if one.ident not in self._threads]  # fmt: skip
        if found := self._expected.differs():
            lasting.append(found)
        return Changes(reset=tuple(reset), lasting=tuple(lasting))

    def accept(self) -> None:
        """Take what cannot be set back as the state to compare with from now on."""
        self._numeric = [
            (switch, before if switch.write else switch.now()) for switch, before in self._numeric
        ]
        self._threads = _threads()
        self._expected = _Computation()


def _threads() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate()}


def reseed(*names: str | int) -> None:
    """Start the process's own random streams from these names."""
    seed = seed_of(*names, "process")
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the stream that a method may draw from)


def switches() -> list[Switch]:
    """All values that are compared."""
    return [*_of_torch(), *_of_backends(), *_of_python(), *_of_system()]


def _of_torch() -> Iterator[Switch]:
    found: list[tuple[str, Callable[[], Any], Callable[[Any], object] | None]] = [
        ("set_num_threads", torch.get_num_threads, torch.set_num_threads),
        ("set_num_interop_threads", torch.get_num_interop_threads, None),
        ("set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("set_default_device", torch.get_default_device, _set_device),
        ("set_grad_enabled", torch.is_grad_enabled, torch.set_grad_enabled),
        ("inference_mode", torch.is_inference_mode_enabled, None),
        ("autocast on the CPU", _casts, lambda on: torch.set_autocast_enabled("cpu", on)),
        ("set_float32_matmul_precision", torch.get_float32_matmul_precision,
         torch.set_float32_matmul_precision),
        ("use_deterministic_algorithms", torch.are_deterministic_algorithms_enabled,
         torch.use_deterministic_algorithms),
        ("set_detect_anomaly", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        ("set_flush_denormal", _flushes, torch.set_flush_denormal),
    ]  # fmt: skip
    for name, read, write in found:
        yield Switch(name=f"torch.{name}", read=read, write=write, numeric=True)


def _casts() -> bool:
    """Whether autocast is on outside of any block."""
    return torch.is_autocast_enabled("cpu")


def _set_device(device: torch.device) -> None:
    # A device that was set stays in a mode that slows every call; None leaves the mode.
    torch.set_default_device(None if device.type == "cpu" else device)


def _flushes() -> bool:
    smallest = torch.tensor(5e-324, dtype=torch.float64, device="cpu")
    return not bool((smallest * 1.0).item())


def _of_backends() -> Iterator[Switch]:
    flags: list[tuple[Any, str, tuple[str, ...]]] = [
        (torch.backends.mkldnn, "mkldnn", ("enabled", "deterministic", "allow_tf32")),
        (torch.backends.cudnn, "cudnn", ("enabled", "benchmark", "deterministic", "allow_tf32")),
        (torch.backends.cuda.matmul, "cuda.matmul", (
            "allow_tf32", "allow_fp16_reduced_precision_reduction",
            "allow_bf16_reduced_precision_reduction",
        )),
        (torch.backends.opt_einsum, "opt_einsum", ("enabled", "strategy")),
    ]  # fmt: skip
    for module, name, attributes in flags:
        for attribute in attributes:
            yield _flag(module, f"torch.backends.{name}.{attribute}", attribute)
    for kind in _SDP:
        read = getattr(torch.backends.cuda, f"{kind}_sdp_enabled", None)
        write = getattr(torch.backends.cuda, f"enable_{kind}_sdp", None)
        if read and write:
            name = f"torch.backends.cuda.enable_{kind}_sdp"
            yield Switch(name=name, read=read, write=write, numeric=True)
    mha = torch.backends.mha
    yield Switch(name="torch.backends.mha", read=mha.get_fastpath_enabled,
                 write=mha.set_fastpath_enabled, numeric=True)  # fmt: skip


def _flag(module: Any, name: str, attribute: str) -> Switch:
    return Switch(
        name=name,
        read=lambda: getattr(module, attribute),
        write=lambda value: setattr(module, attribute, value),
        numeric=True,
    )


def _of_python() -> Iterator[Switch]:
    yield Switch(name="sys.path", read=lambda: list(sys.path), write=_set_path, shown=False)
    yield Switch(name="sys.setrecursionlimit", read=sys.getrecursionlimit,
                 write=sys.setrecursionlimit)  # fmt: skip
    yield Switch(name="gc.disable", read=gc.isenabled, write=_set_gc)
    yield Switch(name="numpy.seterr", read=np.geterr, write=lambda kept: np.seterr(**kept))
    yield Switch(name="warnings that are errors", read=_errors, write=_set_errors, shown=False)
    yield Switch(name="locale", read=lambda: locale.setlocale(locale.LC_ALL),
                 write=lambda kept: locale.setlocale(locale.LC_ALL, kept))  # fmt: skip
    for name in ("stdout", "stderr", "stdin"):
        yield Switch(name=f"sys.{name}", read=partial(_stream, name),
                     write=partial(_set_stream, name))  # fmt: skip


def _stream(name: str) -> "_Same":
    return _Same(getattr(sys, name))


def _set_stream(name: str, kept: "_Same") -> None:
    setattr(sys, name, kept.value)


class _Same:
    """Equal to itself alone: an object compared by identity."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __str__(self) -> str:
        return type(self.value).__name__


def _set_path(kept: list[str]) -> None:
    sys.path[:] = kept


def _set_gc(on: bool) -> None:
    (gc.enable if on else gc.disable)()


def _errors() -> list[tuple[Any, ...]]:
    return [tuple(one) for one in warnings.filters if one[0] == "error"]


def _set_errors(kept: list[tuple[Any, ...]]) -> None:
    filters = cast("list[Any]", warnings.filters)
    filters[:] = [one for one in filters if one[0] != "error" or tuple(one) in kept]


def _of_system() -> Iterator[Switch]:
    yield Switch(name="environment", read=lambda: dict(os.environ), write=_set_environment,
                 shown=False)  # fmt: skip
    yield Switch(name="os.chdir", read=os.getcwd, write=os.chdir, shown=False)
    yield Switch(name="os.umask", read=_umask, write=os.umask)
    if hasattr(os, "sched_setaffinity"):
        yield Switch(name="os.sched_setaffinity", read=lambda: os.sched_getaffinity(0),
                     write=lambda kept: os.sched_setaffinity(0, kept))  # fmt: skip
    yield Switch(name="signal.setitimer", read=lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
                 write=lambda _: signal.setitimer(signal.ITIMER_REAL, 0))  # fmt: skip
    for name in _SIGNALS:
        number = getattr(signal, name)
        yield Switch(name=f"signal.signal({name})",
                     read=partial(signal.getsignal, number),
                     write=partial(signal.signal, number))  # fmt: skip
    for name in _LIMITS:
        number = getattr(resource, name)
        yield Switch(
            name=f"resource.{name}",
            read=partial(resource.getrlimit, number),
            write=partial(resource.setrlimit, number),
        )


def _umask() -> int:
    now = os.umask(0o77)
    os.umask(now)
    return now


def _set_environment(kept: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name not in kept]:
        del os.environ[name]
    os.environ.update({k: v for k, v in kept.items() if os.environ.get(k) != v})


def _same(before: Any, after: Any) -> bool:
    return type(before) is type(after) and bool(before == after)


def _set_back(switch: Switch, value: Any) -> bool:
    if switch.write is None:
        return False
    with suppress(Exception):
        switch.write(value)
    return _same(value, switch.now())


# Functions that stand under their names: of PyTorch, NumPy, Python and the engine itself.


class _Namespace:
    """The functions and classes of a module or class, by name."""

    def __init__(self, name: str, space: ModuleType | type) -> None:
        self.name, self.space = name, space
        found = {k: v for k, v in vars(space).items() if callable(v) or _is_wrapped(v)}
        self.keys, self.values = list(found), list(found.values())
        self._all = set(vars(space))

    def restore(self) -> list[str]:
        """Put back what was replaced, removed or put before an inherited function; the names."""
        now = vars(self.space)
        changed = []
        if any(map(is_not, map(now.get, self.keys), self.values)):
            for key, value in zip(self.keys, self.values, strict=True):
                if now.get(key, _MISSING) is not value:
                    setattr(self.space, key, value)
                    changed.append(f"{self.name}.{key}")
        if len(now) != len(self._all) and isinstance(self.space, type):
            for key in [key for key in now if key not in self._all]:
                if any(key in vars(base) for base in self.space.__mro__[1:]):
                    delattr(self.space, key)
                    changed.append(f"{self.name}.{key}")
        return changed


def _is_wrapped(value: object) -> bool:
    return isinstance(value, staticmethod | classmethod | property)


def _namespaces() -> Iterator[tuple[str, ModuleType | type]]:
    modules: list[ModuleType] = [torch, F, torch.autograd, np, math, random, builtins]
    modules += [one for name, one in list(sys.modules.items()) if _is_ours(name) and one]
    for module in modules:
        yield module.__name__, module
    classes = [Tensor, nn.Module, nn.Parameter, torch.optim.Optimizer, torch.optim.AdamW]
    classes += [one for one in vars(nn).values() if inspect.isclass(one)]
    classes += [
        one
        for module in modules
        if _is_ours(module.__name__)
        for one in vars(module).values()
        if inspect.isclass(one) and one.__module__ == module.__name__
    ]
    for cls in classes:
        yield cls.__qualname__, cls


def _is_ours(name: str) -> bool:
    return name == "fusionbench" or name.startswith("fusionbench.")


class _Computation:
    """A small computation whose bits must not change: modes and hooks that no flag shows."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self._layer = nn.Linear(8, 8)
        with torch.no_grad():
            for parameter in self._layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        self._inputs = torch.randn(4, 8, generator=draw)
        self._answers = torch.arange(4)
        self._expected = self._run()

    def differs(self) -> str:
        """How it ends otherwise than at the start; empty if it does not."""
        try:
            found = self._run()
        except Exception as error:
            return f"a fixed computation fails: {type(error).__name__}: {error}"[: 2 * _LONGEST]
        return "" if found == self._expected else "a fixed computation gives other numbers"

    def _run(self) -> list[bytes]:
        hidden = F.gelu(F.layer_norm(self._layer(self._inputs), (8,)))
        loss = F.cross_entropy(torch.softmax(hidden @ hidden.mT, dim=-1), self._answers)
        gradients = torch.autograd.grad(loss, list(self._layer.parameters()))
        return [one.detach().numpy().tobytes() for one in (hidden, loss, *gradients)]


# Tensors that trainings share: the weights of the encoder, and what they read.


def versions(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """How often each tensor was written to."""
    return tuple(tensor._version for tensor in tensors)


class Sealed:
    """An encoder as it is now; `broken` tells whether somebody has changed it since.

    `thorough` also compares what it makes of one image, which shows a weight that was written to
    past PyTorch's own count, a hook or a replaced block; on a GPU the sums of its weights.
    """

    def __init__(self, encoder: Encoder, *, thorough: bool) -> None:
        self.encoder, self.thorough = encoder, thorough
        self._weights = [*encoder.parameters(), *encoder.buffers()]
        self._state = self._now()
        self._sample: list[bytes] = []
        if thorough:
            self.deepen()

    def deepen(self) -> None:
        """Compare thoroughly from now on."""
        if not self._sample:
            self.thorough, self._sample = True, self._seen()

    def broken(self, *, thorough: bool = False) -> bool:
        """True for an encoder that is not what it was."""
        try:
            same = self._now() == self._state
            if same and thorough and self.thorough:
                same = self._seen() == self._sample
        except Exception:
            return True
        return not same

    def _now(self) -> tuple[Any, ...]:
        training = any(module.training for module in self.encoder.modules())
        asked = any(weight.requires_grad for weight in self._weights)
        return versions(self._weights), training, asked

    def _seen(self) -> list[bytes]:
        device = next((weight.device for weight in self._weights), torch.device("cpu"))
        if device.type != "cpu":
            # A batch of one image would be compiled for itself.
            sums = [weight.double().sum() for weight in self._weights]
            return [torch.stack(sums).cpu().numpy().tobytes()]
        size = self.encoder.size
        draw = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=draw)
        with torch.no_grad():
            states = self.encoder.hidden_states(image)
        return [one.float().numpy().tobytes() for one in states]
