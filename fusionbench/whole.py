"""Whether a record on disk is whole: its own bytes, its name, and the outcomes it points to."""

import re
from pathlib import Path

from fusionbench.cache import sha256_of
from fusionbench.records import SCHEMA, CellRecord, checksum, json_object

_ID = re.compile(r"[0-9a-f]{20}")


def read_record(path: Path) -> CellRecord:
    """A record; ValueError for a truncated, foreign or edited file."""
    return CellRecord.from_json(path.read_text(encoding="utf-8"))


def examine(path: Path, outcomes: Path) -> None:
    """Raise ValueError or OSError for a file that is no record or does not fit its outcomes.

    The checksum stands for the contents, so that 100,000 files are examined without building
    100,000 records.
    """
    if path.suffix != ".json" or not _ID.fullmatch(path.stem):
        raise ValueError("not a file of FusionBench")
    values = json_object(path.read_text(encoding="utf-8"))
    claimed = values.pop("checksum", None)
    if "spec" not in values or values.get("schema") != SCHEMA:
        raise ValueError("not a cell record that this version reads")
    if claimed != checksum(values):
        raise ValueError("edited: the checksum does not fit the contents")
    if values["id"] != path.stem:
        raise ValueError(f"holds the record of another cell ({values['id']})")
    expected = values.get("outcomes")
    if expected and not outcomes.exists():
        raise ValueError(f"its outcomes are missing ({outcomes.name})")
    if expected and sha256_of(outcomes) != expected:
        raise ValueError(f"its outcomes were damaged or edited ({outcomes.name})")
