"""Commands in this process: the same jobs and events, and no other process imports torch.

Reports come without figures, which take most of their time, unless a test asks for them.
"""

import contextlib
import io
import sys
from functools import partial

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


def fusionbench(*arguments, **how):
    """Run a command that must succeed; its standard output."""
    code, out, err = run(*arguments, **how)
    assert code == 0, f"{arguments}: {out}{err}"
    return out
