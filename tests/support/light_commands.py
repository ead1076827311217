"""Commands that must not import what is slow to import, one after the other in a fresh process."""

import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

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
    loaded = set({heavy!r}) & set(sys.modules)
    assert not loaded, (arguments, loaded)
"""


def run_without(heavy: Collection[str], commands: Sequence[Sequence[object]], folder: Path) -> None:
    """Fail at the first command that fails, says nothing or leaves one of `heavy` loaded.

    In one process, since its start takes longer than the commands.
    """
    words = [[str(word) for word in command] for command in commands]
    code = IN_TURN.format(commands=words, heavy=sorted(heavy))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
