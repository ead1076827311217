"""Whether a record on disk is whole: its own bytes, its name, and the outcomes it points to."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from fusionbench.api.errors import Problem
from fusionbench.forks import in_order
from fusionbench.records import SCHEMA, CellRecord, checksum, json_object

_ID = re.compile(r"[0-9a-f]{20}")
_SHARE = 2000
"""Files that a process examines at a time; fewer are not worth another process."""


def content(path: Path) -> bytes:
    """All of a small file: half of the time of `read_bytes`, and there may be 200,000 of them."""
    with path.open("rb", buffering=0) as file:
        return file.read()


def read_record(path: Path) -> CellRecord:
    """A record; ValueError for a truncated, foreign or edited file."""
    return CellRecord.from_json(content(path).decode())


def problems(paths: Sequence[Path]) -> Iterator[Problem]:
    """What is wrong with which of these records of one folder of results, in their order."""
    shares = [paths[start : start + _SHARE] for start in range(0, len(paths), _SHARE)]
    for found in in_order([partial(_problems, share) for share in shares]):
        yield from found


def _problems(paths: Sequence[Path]) -> list[Problem]:
    found: list[Problem] = []
    for path in paths:
        try:
            examine(path, path.parent.parent / "outcomes" / f"{path.stem}.bin")
        except (OSError, ValueError) as error:
            found.append(Problem(source=str(path), message=f"ignored: {error}"))
    return found


def examine(path: Path, outcomes: Path) -> None:
    """Raise ValueError or OSError for a file that is no record or does not fit its outcomes.

    The checksum stands for the contents, so that 100,000 files are examined without building
    100,000 records.
    """
    if path.suffix != ".json" or not _ID.fullmatch(path.stem):
        raise ValueError("not a file of FusionBench")
    values = json_object(content(path).decode())
    claimed = values.pop("checksum", None)
    if "spec" not in values or values.get("schema") != SCHEMA:
        raise ValueError("not a cell record that this version reads")
    if claimed != checksum(values):
        raise ValueError("edited: the checksum does not fit the contents")
    if values["id"] != path.stem:
        raise ValueError(f"holds the record of another cell ({values['id']})")
    if values.get("outcomes"):
        _compare(outcomes, values["outcomes"])


def _compare(outcomes: Path, expected: str) -> None:
    try:
        found = hashlib.sha256(content(outcomes)).hexdigest()
    except FileNotFoundError as error:
        raise ValueError(f"its outcomes are missing ({outcomes.name})") from error
    if found != expected:
        raise ValueError(f"its outcomes were damaged or edited ({outcomes.name})")
