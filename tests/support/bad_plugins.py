"""Plug-ins that misbehave, each in one way: what they do, where, and the words that name it."""

from dataclasses import dataclass

HEAD = """
import builtins, ctypes, gc, os, resource, signal, sys, threading, time, warnings
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from fusionbench.api import Fused, Fusion, method
from fusionbench.api.encoders import Encoder
from fusionbench.api.errors import FatalError, UserError


def found(kind):
    # `isinstance` asks the object, and a weak proxy may have outlived its own.
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]


def tensors(module):
    return [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]

"""
METHOD = """
{at_import}


@method("{name}", version=1)
class Bad(Fusion):
    def __init__(self, shape):
        super().__init__(shape)
        self.taps = ((2,), (3,))
        self.mix = nn.Linear(shape.dim, shape.dim)
        {at_init}

    def forward(self, hidden, query):
        {at_forward}
        return Fused(tokens=self.mix(self.patches(hidden[0])) + self.patches(hidden[1]))
"""
TASK = """
import os, sys
from fusionbench.api import Task, task
from fusionbench.api.errors import UserError


@task("{name}", version=1, family="bad", group="fine")
class Bad(Task):
    chance = 0.5

    def load(self):
        {at_load}
"""
GOOD = HEAD + METHOD.format(name="good", at_import="", at_init="pass", at_forward="pass")


@dataclass(frozen=True)
class Bad:
    """A plug-in: where it misbehaves, and words of its record, its failure or the terminal."""

    place: str
    code: str
    words: str
    done: bool = False
    """Whether its cell ends with a record, whose notes name what it changed."""


def _changes(code: str, words: str) -> Bad:
    return Bad("forward", code, words, done=True)


METHODS = {
    # What the next cell of the process would start from.
    "threads": _changes("torch.set_num_threads(3)", "torch.set_num_threads: 1 -> 3"),
    "mkldnn": _changes("torch.backends.mkldnn.enabled = False", "mkldnn.enabled: True -> False"),
    "dtype_init": Bad("init", "torch.set_default_dtype(torch.float64)", "set_default_dtype"),
    "device_init": Bad("init", "torch.set_default_device('meta')", "set_default_device"),
    "grad_off": Bad("forward", "torch.set_grad_enabled(False)", "torch.set_grad_enabled"),
    "algorithms": _changes("torch.use_deterministic_algorithms(True)", "use_deterministic_algor"),
    "precision": _changes("torch.set_float32_matmul_precision('medium')", "matmul_precision"),
    "denormals": _changes("torch.set_flush_denormal(True)", "torch.set_flush_denormal"),
    "anomaly": _changes("torch.autograd.set_detect_anomaly(True)", "set_detect_anomaly"),
    "patched_loss": _changes(
        "F.cross_entropy = lambda a, b, was=F.cross_entropy: 2 * was(a, b)",
        "torch.nn.functional.cross_entropy",
    ),
    "patched_tensor": _changes(
        "torch.Tensor.argmax = lambda self, dim=None: self.new_zeros(len(self), dtype=torch.long)",
        "Tensor.argmax",
    ),
    "patched_layer": _changes("nn.LayerNorm.forward = lambda self, x: x", "LayerNorm.forward"),
    "patched_engine": _changes(
        "import fusionbench.harness.train as t; t.schedule = lambda step, budget: 0.0",
        "fusionbench.harness.train.schedule",
    ),
    "patched_builtin": _changes("builtins.sum = lambda *a, **k: 0", "builtins.sum"),
    "hooked": _changes(
        "nn.modules.module.register_module_forward_hook(lambda m, i, o: None if not "
        "isinstance(o, torch.Tensor) else o * 1.5)",
        "a fixed computation gives other numbers",
    ),
    "encoder_written": _changes(
        "[p.detach().mul_(1.01) for e in found(Encoder) for p in tensors(e)]", "the encoder"
    ),
    "encoder_data": _changes(
        "[p.data.mul_(1.01) for e in found(Encoder) for p in tensors(e)]", "the encoder"
    ),
    "encoder_trains": _changes("[e.train() for e in found(Encoder)]", "the encoder"),
    "states_written": _changes(
        "from fusionbench.harness.materials import Materials; "
        "[t.mul_(0) for m in found(Materials) for t in m._taps.values()]",
        "hidden states or questions",
    ),
    "questions_written": _changes(
        "from fusionbench.harness.materials import Materials; "
        "[m.queries.add_(1) for m in found(Materials)]",
        "hidden states or questions",
    ),
    "environment": _changes("os.environ['OMP_NUM_THREADS'] = '7'", "environment: OMP_NUM_THREADS"),
    "folder": _changes("os.chdir('/')", "os.chdir"),
    "search_path": _changes("sys.path.insert(0, '/nowhere')", "sys.path"),
    "recursion": _changes("sys.setrecursionlimit(600)", "sys.setrecursionlimit"),
    "collector": _changes("gc.disable()", "gc.disable"),
    "numpy_errors": _changes("np.seterr(all='raise')", "numpy.seterr"),
    "warnings": _changes("warnings.simplefilter('error')", "warnings that are errors"),
    "signals": _changes("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signal.signal(SIGTERM)"),
    "umask": _changes("os.umask(0o777)", "os.umask"),
    "files": _changes(
        "resource.setrlimit(resource.RLIMIT_NOFILE, "
        "(128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
        "resource.RLIMIT_NOFILE",
    ),
    "stdout": _changes("sys.stdout = None", "sys.stdout"),
    "thread": _changes(
        "threading.Thread(target=time.sleep, args=(600,), daemon=True, name='left').start()",
        "thread 'left'",
    ),
    "threads_import": Bad("import", "torch.set_num_threads(2)", "torch.set_num_threads", True),
    # What ends the process or the run.
    "raises_import": Bad("import", "raise ValueError('at import')", "ValueError: at import"),
    "exits_import": Bad("import", "sys.exit('bye')", "SystemExit: bye"),
    "dies_import": Bad("import", "os._exit(7)", "exit code 7"),
    "user_import": Bad("import", "raise UserError('mine', 'a hint')", "UserError: mine"),
    "exits_init": Bad("init", "sys.exit(3)", "sys.exit(3)"),
    "user_init": Bad("init", "raise UserError('no such layer')", "no such layer"),
    "fatal": Bad("forward", "raise FatalError('no disk')", "no disk"),
    "raises": Bad("forward", "raise RuntimeError('on purpose')", "on purpose"),
    "interrupts": Bad("forward", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    "dies": Bad("forward", "os._exit(9)", "exit code 9"),
    "exits_well": Bad("forward", "os._exit(0)", "exit code 0"),
    "crashes": Bad("forward", "print('last words'); ctypes.string_at(0)", "last words"),
    "killed": Bad(
        "forward", "os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, as the system sends when mem"
    ),
    "alarm": Bad(
        "forward", "signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(5)", "(signal SIGALRM)"
    ),
    "closes": Bad(
        "forward", "os.closerange(3, 200)", "bad_closes on planted_layer: the worker", True
    ),
    "hangs": Bad("forward", "[time.sleep(1) for _ in range(9999)]", "its limit of time"),
    "none": Bad("forward", "return None", "NoneType"),
    "long_error": Bad("forward", "raise ValueError('x' * 10_000_000)", "xxxx"),
    "bad_error": Bad(
        "forward", "raise type('Odd', (Exception,), {'__str__': lambda s: 1 / 0})", "Odd"
    ),
}
TASKS = {
    "load_raises": Bad("load", "raise OSError('no file')", "OSError: no file"),
    "load_none": Bad("load", "return None", "returned NoneType"),
    "load_exits": Bad("load", "sys.exit(0)", "SystemExit"),
    "load_dies": Bad("load", "os._exit(0)", "exit code 0"),
    "load_user": Bad("load", "raise UserError('get it first')", "get it first"),
}


def source(kind: str) -> str:
    """The file of a plug-in; its method or task is called `bad_` and the kind."""
    if kind in TASKS:
        return TASK.format(name=f"bad_{kind}", at_load=TASKS[kind].code)
    bad = METHODS[kind]
    places = {place: "pass" for place in ("at_import", "at_init", "at_forward")}
    places[f"at_{bad.place}"] = bad.code
    return HEAD + METHOD.format(name=f"bad_{kind}", **places)


def write(folder, *kinds: str) -> str:
    """The plug-ins of these kinds and a good one in a folder; its path."""
    folder.mkdir()
    (folder / "good.py").write_text(GOOD)
    for kind in kinds:
        (folder / f"{kind}.py").write_text(source(kind))
    return str(folder)
