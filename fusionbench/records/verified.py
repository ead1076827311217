"""Which records are sound: the one check of a record and its files, and a cache of passed checks.

Everything that reads records (planning, report, merge, rescoring) reads what passes `examine`.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fusionbench.api.errors import Problem
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import content, state_of, why
from fusionbench.records.outcomes import decode
from fusionbench.records.parallel import in_order
from fusionbench.records.schema import ID, Facts, check_outcomes

FileState = tuple[int, ...]
"""Inode, size and both times (ns) of the record, of its outcomes and of other files that belong to
it, four numbers each; zeros where there is none."""
FileStates = dict[str, FileState]
Passed = tuple[str, str, FileState]
"""A name, the hash of the text that passed the check, and the state of its files."""

ANSWERS, ANSWERS_END = "answers", ".jsonl.gz"
NOTHING: FileState = (0, 0, 0, 0)
_SHARE = 2000
"""Files that a process examines at a time; fewer are not worth another process."""
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMAT = "2"
"""First word of a line of the cache; a later version checks more, and starts anew."""
_CLAIMED = re.compile(rb'"(outcomes|answers)": "([0-9a-f]{64})"')
"""In the text of a record and nowhere else: a quote inside a text is escaped."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the files that a record refers to are read from.

    Each raises FileNotFoundError or KeyError for what is missing, ValueError for what is damaged.
    """

    facts: Facts
    outcomes: Callable[[str, str], bytes]
    """Of a cell, with this SHA-256."""
    answers: Callable[[str, str], bytes]
    items: Callable[[str], int]
    """Number of examples behind a hash of items."""


def examine(text: str, parts: Parts, cell: str = "") -> CellRecord:
    """The record of a line, with everything that it refers to compared.

    Raises ValueError for text that is no record, for values of another type or range, for an id
    that is not the hash of the specification, and for files that are missing, damaged or of another
    length; OSError for what cannot be read.
    """
    record = parts.facts.read(text, cell)
    name = cell or record.id
    scores = _read("outcomes", parts.outcomes, name, record.outcomes)
    check_outcomes(record, None if scores is None else decode(scores))
    _read("answers", parts.answers, name, record.answers)
    if record.items:
        try:
            count = parts.items(record.items)
        except (FileNotFoundError, KeyError) as error:
            raise ValueError(f"its items are missing ({record.items}.json)") from error
        if count != record.examples:
            raise ValueError(f"{count} items of {record.examples} examples")
    return record


def _read(what: str, read: Callable[[str, str], bytes], cell: str, claimed: str) -> bytes | None:
    """A file of a cell whose hash is the claimed one; None where the record claims none."""
    if not claimed:
        return None
    try:
        found = read(cell, claimed)
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(f"its {what} are missing") from error
    if hashlib.sha256(found).hexdigest() != claimed:
        raise ValueError(f"its {what} were damaged or edited")
    return found


def examine_file(path: Path, parts: Parts, known: str = "") -> str:
    """`examine` for a file of one record; returns the hash of its text.

    A text of the hash `known` has passed before: only the files that it refers to are read again.
    """
    if path.suffix != ".json" or not ID.fullmatch(path.stem):
        raise ValueError("not a file of FusionBench")
    text = content(path)
    digest = text_hash(text)
    if digest != known:
        examine(text.decode(), parts, path.stem)
        return digest
    for what, claimed in _CLAIMED.findall(text):
        read = parts.outcomes if what == b"outcomes" else parts.answers
        _read(what.decode(), read, path.stem, claimed.decode())
    return digest


def text_hash(text: bytes) -> str:
    """32 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(text).hexdigest()[:32]


def answers_file(folder: Path, cell: str) -> Path:
    """The file of a cell's answers."""
    return folder / ANSWERS / f"{cell}{ANSWERS_END}"


def examined(
    paths: Sequence[Path], parts: Parts, known: Mapping[str, str]
) -> Iterator[str | Problem]:
    """The hash of each of these records that is sound, else why it cannot be used, in their order.

    `known`: hashes of texts that have passed before, by cell.
    """
    shares = [paths[start : start + _SHARE] for start in range(0, len(paths), _SHARE)]
    for found in in_order([partial(_examined, share, parts, known) for share in shares]):
        yield from found


def _examined(paths: Sequence[Path], parts: Parts, known: Mapping[str, str]) -> list[str | Problem]:
    found: list[str | Problem] = []
    for path in paths:
        try:
            found.append(examine_file(path, parts, known.get(path.stem, "")))
        except (OSError, ValueError) as error:
            found.append(Problem(source=str(path), message=f"ignored: {why(error)}"))
    return found


class VerifiedFiles:
    """Cache of passed checks, so that planning reads few files and a report parses few.

    An append-only text file with one line for each check: the hash of the text, and inode, size and
    times of the files. Planning believes the state of a file, which a copy or an edit changes even
    where size and time of change are kept; whatever is read for a table is compared by its hash.
    Without the cache every file is examined again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.states: dict[str, FileState] = {}
        self.digests: dict[str, str] = {}
        self._read()

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            for line in content(self.file).decode("utf-8", "replace").split("\n"):
                # A kill may truncate the last line; a line that does not parse is skipped.
                with suppress(ValueError):
                    version, name, digest, *numbers = line.split(" ")
                    if version == _FORMAT and len(numbers) % 4 == 0:
                        self.states[name] = tuple(map(int, numbers))
                        self.digests[name] = digest

    def knows(self, name: str, state: FileState) -> bool:
        """Whether this version of the files has passed before."""
        return self.states.get(name) == state

    def add(self, passed: Iterable[Passed], rests_on: Iterable[str]) -> None:
        """Remember checks, and the facts and items (`facts/<hash>`, `items/<hash>`) they rest on.

        A folder that cannot be written is examined again.
        """
        new = [(name, "-", NOTHING) for name in rests_on if name not in self.states]
        new += [one for one in passed if not self._has(one)]
        for name, digest, state in new:
            self.states[name], self.digests[name] = state, digest
        lines = "".join(f"{_FORMAT} {n} {d} {' '.join(map(str, s))}\n" for n, d, s in new)
        if lines:
            # One write in append mode: lines of several workers do not mix.
            with suppress(OSError):
                handle = os.open(self.file, _APPEND, 0o666)
                with os.fdopen(handle, "wb") as file:
                    file.write(lines.encode())

    def _has(self, one: Passed) -> bool:
        return self.states.get(one[0]) == one[2] and self.digests[one[0]] == one[1]

    def recheck(self, sound: Callable[[str], bool]) -> None:
        """Forget all checks if something that they rest on is no longer `sound`."""
        if not all(sound(name) for name in self.states if "/" in name):
            self.states.clear()
            self.digests.clear()


def sizes(folder: Path, suffix: str) -> FileStates:
    """The state of each file with this ending, by stem; zeros for one that cannot be looked at.

    An error of one file (a link to nothing) stays with that file. Raises OSError for a folder that
    cannot be listed.
    """
    found: FileStates = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                try:
                    state = state_of(entry.stat())
                except OSError:
                    state = NOTHING
                found[entry.name.removesuffix(suffix)] = state
    return found


def size_of(file: Path) -> FileState:
    """The state of one file; zeros if there is none."""
    try:
        return state_of(file.stat())
    except OSError:
        return NOTHING
