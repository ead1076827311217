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
