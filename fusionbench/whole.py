"""Whether a record on disk is whole: its own bytes, its name, and the outcomes it points to."""

import re
from pathlib import Path

from fusionbench.cache import sha256_of
from fusionbench.records import CellRecord

_ID = re.compile(r"[0-9a-f]{20}")


def read_record(path: Path) -> CellRecord:
    """A record; ValueError for a truncated, foreign or edited file."""
    return CellRecord.from_json(path.read_text(encoding="utf-8"))


def examine(path: Path, outcomes: Path) -> None:
    """Raise ValueError or OSError for a file that is no record or does not fit its outcomes."""
    if path.suffix != ".json" or not _ID.fullmatch(path.stem):
        raise ValueError("not a file of FusionBench")
    record = read_record(path)
    if record.id != path.stem:
        raise ValueError(f"holds the record of another cell ({record.id})")
    if record.outcomes and not outcomes.exists():
        raise ValueError(f"its outcomes are missing ({outcomes.name})")
    if record.outcomes and sha256_of(outcomes) != record.outcomes:
        raise ValueError(f"its outcomes were damaged or edited ({outcomes.name})")
