"""Whether a report shows what its folder holds, told from names alone: records never change."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fusionbench import __version__
from fusionbench.records.cost import FOLDER
from fusionbench.records.files import write_atomic
from fusionbench.records.history import ABLATIONS
from fusionbench.records.store import Store

_NOTE = ".inputs"


def up_to_date(store: Store, home: Path) -> bool:
    """Whether the report in `home` was made from exactly these records."""
    note = home / _NOTE
    if not note.exists():
        return False
    return note.read_text(encoding="utf-8") == fingerprint(store, store.finished())


def mark(home: Path, inputs: str) -> None:
    """Note the fingerprint of what the report was made from.

    It is taken before anything is read, so that a record which appears meanwhile is not passed
    over, and written last, so that a torn report is made again.
    """
    write_atomic(home / _NOTE, inputs.encode())


def fingerprint(store: Store, finished: Iterable[str]) -> str:
    """Hash over everything that a report shows; `finished` are the ids of the store's cells."""
    failures = [path.name for path in (store.folder / "failures").glob("*.json")]
    names = sorted([*finished, *failures])
    profiles = sorted((store.folder / FOLDER).glob("*.json"))
    others = [store.history.file, store.folder / ABLATIONS, *profiles]
    beside = b"".join(file.read_bytes() for file in others if file.exists())
    problems = [str(problem) for problem in store.problems]
    text = "\n".join([__version__, *names, *problems])
    return hashlib.sha256(text.encode() + beside).hexdigest()
