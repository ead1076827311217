"""Commands in this process: the same jobs and events, and no other process imports torch.

Reports come without figures, which take most of their time, unless a test asks for them.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import pytest

from fusionbench.cli.main import main
from fusionbench.launchers import local
from fusionbench.launchers.jobs import in_turn
from fusionbench.launchers.signing import Failures
from fusionbench.launchers.workers import events_of, runner_of


class InProcessLauncher:
    """Runs each job in this process, in order."""

    def __init__(self, options):
        self.work = runner_of(options)
        self.fail = Failures(options)

    def run(self, jobs, on_event):
        for event in in_turn(partial(events_of, self.work), jobs, self.fail):
            on_event(event)

    def close(self):
        pass


def run(*arguments, folder=None, variables=None, figures=False):
    """Run a command in `folder`; its exit status, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        if folder is not None:
            patch.chdir(folder)
        for name, value in (variables or {}).items():
            patch.setenv(name, value)
        patch.setattr(local, "LocalLauncher", InProcessLauncher)
        if not figures:
            patch.setattr("fusionbench.report.build.write_figures", lambda *_: [])
        patch.setattr(sys, "argv", ["fusionbench", *map(str, arguments)])
        with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
    return end.value.code or 0, out.getvalue(), err.getvalue()


def killed_behind(count, cls, method, *arguments, prepare=None):
    """Run a command in another process that kills itself behind call `count` of a method.

    Returns its exit status, -9 if it came that far. The process is forked from one that has only
    imported torch: a fork of this one could not train once a tracing test has begun autograd's
    threads here. `prepare`, of a module, is called there first.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["torch", "fusionbench.cli.main"])
    job = (count, cls, method, arguments, dict(os.environ), prepare)
    child = forks.Process(target=_until_killed, args=job)
    child.start()
    child.join()
    return child.exitcode


def _until_killed(count, cls, method, arguments, variables, prepare):
    os.environ.clear()
    os.environ.update(variables)
    if prepare is not None:
        prepare()
    _kill_behind(count, cls, method)
    sys.exit(f"not killed: {run(*arguments)}")


def _kill_behind(count, cls, method):
    whole, calls = getattr(cls, method), iter(range(1, count + 1))

    def counted(self, *arguments, **named):
        found = whole(self, *arguments, **named)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(cls, method, counted)


def fusionbench(*arguments, **how):
    """Run a command that must succeed; its standard output."""
    code, out, err = run(*arguments, **how)
    assert code == 0, f"{arguments}: {out}{err}"
    return out


# Commands that must not import what is slow to import, one after the other in a fresh process.
IN_TURN = """
import contextlib, io, sys
from fusionbench.cli.main import main

for arguments in {commands!r}:
    sys.argv, said = ["fusionbench", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            main()
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
    assert said.getvalue(), arguments
    print(*arguments, ":", *sorted(set({heavy!r}) & set(sys.modules)))
"""


def loaded_after(
    heavy: Collection[str], commands: Sequence[Sequence[object]], folder: Path
) -> dict[str, str]:
    """Command -> the modules of `heavy` that are loaded after it; only commands that have some.

    In one process, since its start takes longer than the commands. Raises AssertionError for a
    command that fails or says nothing.
    """
    words = [[str(word) for word in command] for command in commands]
    code = IN_TURN.format(commands=words, heavy=sorted(heavy))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rpartition(" :") for line in done.stdout.splitlines()]
    assert len(lines) == len(words), done.stdout
    return {command: loaded.strip() for command, _, loaded in lines if loaded.strip()}
