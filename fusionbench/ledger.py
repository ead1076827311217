"""Which cell files were found whole, by size and time of change, so that planning reads few.

The ledger is only a memory of checks: without it every file is read again, and nothing is lost.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

State = tuple[int, int, int, int]
"""Size and time (ns) of the record, size and time of its outcomes (0, 0 where it has none)."""
Sizes = dict[str, tuple[int, int]]


class Ledger:
    """An append-only text file, one line for each check that a cell has passed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.states: dict[str, State] = {}
        self._read()

    def _read(self) -> None:
        with suppress(OSError, UnicodeDecodeError):
            for line in self.file.read_text(encoding="utf-8").splitlines():
                # The last line may be torn by a kill; what does not parse is not known.
                with suppress(ValueError):
                    name, *numbers = line.split(" ")
                    first, second, third, fourth = map(int, numbers)
                    self.states[name] = (first, second, third, fourth)

    def knows(self, name: str, state: State) -> bool:
        """Whether this very file has been checked before."""
        return self.states.get(name) == state

    def add(self, checked: Iterable[tuple[str, State]]) -> None:
        """Remember checks; a folder that cannot be written is read again next time."""
        lines = []
        for name, state in checked:
            self.states[name] = state
            lines.append(f"{name} {' '.join(map(str, state))}\n")
        if lines:
            # One write in append mode: lines of several workers do not mix.
            with suppress(OSError), self.file.open("a", encoding="utf-8") as file:
                file.write("".join(lines))


def sizes(folder: Path, suffix: str) -> Sizes:
    """Size and time of change of each file with this ending, by stem."""
    found: Sizes = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                status = entry.stat()
                found[entry.name.removesuffix(suffix)] = (status.st_size, status.st_mtime_ns)
    return found


def size_of(file: Path) -> tuple[int, int]:
    """Size and time of change of one file; (0, 0) if it does not exist."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
