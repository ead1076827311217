"""Whether a report shows what its folder holds, decided by names: records never change.

Loads no statistics, so that a run with nothing to do stays quick.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from fusionbench import __version__
from fusionbench.records.archive import FAILURES
from fusionbench.records.cost import profile_files
from fusionbench.records.files import content, write_atomic
from fusionbench.records.history import ABLATIONS
from fusionbench.records.pictures import picture_files
from fusionbench.records.store import Store

_NOTE = ".inputs"


def up_to_date(store: Store, home: Path, finished: Mapping[str, Path] | None = None) -> bool:
    """Whether the report in `home` was made from exactly these records."""
    note = home / _NOTE
    if not note.exists():
        return False
    cells = store.finished() if finished is None else finished
    return note.read_text(encoding="utf-8") == fingerprint(store, cells)


def mark(home: Path, inputs: str) -> None:
    """Write the fingerprint of what the report was made from.

    Take it before any record is read, so that one which appears meanwhile is not missed, and write
    it last, so that an interrupted report is made again.
    """
    write_atomic(home / _NOTE, inputs.encode())


def fingerprint(store: Store, finished: Iterable[str]) -> str:
    """Hash over everything that a report shows; `finished` are the ids of the store's cells."""
    failures = [path.name for path in (store.folder / "failures").glob("*.json")]
    names = sorted([*finished, *failures])
    others = [store.history.file, store.folder / ABLATIONS, store.folder / FAILURES]
    others += [*profile_files(store.folder), *picture_files(store.folder)]
    problems = [str(problem) for problem in store.problems]
    text = "\n".join([__version__, *names, *problems])
    return hashlib.sha256(text.encode() + b"".join(map(_bytes, others))).hexdigest()


def _bytes(file: Path) -> bytes:
    """The contents of a file; empty for one that cannot be read, which is a problem elsewhere."""
    try:
        return content(file)
    except (OSError, ValueError):
        return b""
