"""Which records are sound: checks of a record and its outcomes, and a cache of passed checks."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from fusionbench.api.errors import Problem
from fusionbench.records.facts import Facts, check
from fusionbench.records.files import content
from fusionbench.records.parallel import in_order

FileState = tuple[int, ...]
"""Size and time (ns) of the record, of its outcomes (0, 0 where it has none), and of its answers
where it has some."""
FileSizes = dict[str, tuple[int, int]]

ANSWERS, ANSWERS_END = "answers", ".jsonl.gz"
_ID = re.compile(r"[0-9a-f]{20}")
_NUMBERS = (4, 6)
"""Lengths of a file's state."""
_SHARE = 2000
"""Files that a process examines at a time; fewer are not worth another process."""
_FACT = "facts/"


def examine(
    text: str,
    facts: Facts,
    outcomes: Callable[[], bytes],
    answers: Callable[[], bytes],
    cell: str = "",
) -> None:
    """Raise ValueError for a line that is no record, or whose facts or files do not match it.

    Checksums replace the contents, so that no record is built.
    """
    values = check(text, cell)
    for name in values.get("facts", ()):
        facts.require(name)
    for name, read in (("outcomes", outcomes), ("answers", answers)):
        if expected := values.get(name):
            try:
                found = hashlib.sha256(read()).hexdigest()
            except (FileNotFoundError, KeyError) as error:
                raise ValueError(f"its {name} are missing") from error
            if found != expected:
                raise ValueError(f"its {name} were damaged or edited")


def examine_file(path: Path, facts: Facts) -> None:
    """`examine` for a file of one record. Raises ValueError or OSError."""
    if path.suffix != ".json" or not _ID.fullmatch(path.stem):
        raise ValueError("not a file of FusionBench")
    folder = path.parent.parent
    outcomes, answers = folder / "outcomes" / f"{path.stem}.bin", answers_file(folder, path.stem)
    text = content(path).decode()
    examine(text, facts, partial(content, outcomes), partial(content, answers), path.stem)


def answers_file(folder: Path, cell: str) -> Path:
    """The file of a cell's answers."""
    return folder / ANSWERS / f"{cell}{ANSWERS_END}"


def problems(paths: Sequence[Path], facts: Facts) -> Iterator[Problem]:
    """One problem for each of these records of a folder that cannot be used, in their order."""
    shares = [paths[start : start + _SHARE] for start in range(0, len(paths), _SHARE)]
    for found in in_order([partial(_problems, share, facts) for share in shares]):
        yield from found


def _problems(paths: Sequence[Path], facts: Facts) -> list[Problem]:
    found: list[Problem] = []
    for path in paths:
        try:
            examine_file(path, facts)
        except (OSError, ValueError) as error:
            found.append(Problem(source=str(path), message=f"ignored: {error}"))
    return found


class VerifiedFiles:
    """Cache of passed checks by size and time of change, so that planning reads few files.

    An append-only text file with one line for each check. Without it every file is read again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.states: dict[str, FileState] = {}
        self._read()

    def _read(self) -> None:
        with suppress(OSError, UnicodeDecodeError):
            for line in self.file.read_text(encoding="utf-8").splitlines():
                # A kill may truncate the last line; a line that does not parse is skipped.
                with suppress(ValueError):
                    name, *numbers = line.split(" ")
                    if len(numbers) in _NUMBERS:
                        self.states[name] = tuple(map(int, numbers))

    def knows(self, name: str, state: FileState) -> bool:
        """Whether this version of the file has passed before."""
        return self.states.get(name) == state

    def add(self, passed: Iterable[tuple[str, FileState]], facts: Iterable[str]) -> None:
        """Remember checks and the facts that they rest on; a read-only folder is read again."""
        new: dict[str, FileState] = {
            name: (0, 0, 0, 0) for one in facts if (name := _FACT + one) not in self.states
        }
        new |= dict(passed)
        self.states |= new
        lines = "".join(f"{name} {' '.join(map(str, state))}\n" for name, state in new.items())
        if lines:
            # One write in append mode: lines of several workers do not mix.
            with suppress(OSError), self.file.open("a", encoding="utf-8") as file:
                file.write(lines)

    def recheck(self, facts: Facts) -> None:
        """Forget all checks if a fact that they rest on is missing or damaged."""
        try:
            for name in self.states:
                if name.startswith(_FACT):
                    facts.require(name.removeprefix(_FACT))
        except ValueError:
            self.states.clear()


def sizes(folder: Path, suffix: str) -> FileSizes:
    """Size and time of change of each file with this ending, by stem."""
    found: FileSizes = {}
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
