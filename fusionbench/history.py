"""What was asked of a results folder, run by run; a report reads from it what is still missing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusionbench.api.errors import disk_error
from fusionbench.cache import write_atomic


@dataclass(frozen=True, kw_only=True)
class Run:
    """One request: the grid of cells it meant here, and what it had to leave out."""

    study: Mapping[str, Any]
    """The study's fields."""
    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Task -> why it was left out."""
    version: str = ""


class History:
    """`study.json`: the runs of a folder, oldest first, equal ones in a row only once."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def runs(self) -> list[Run]:
        """All runs; none for a file that is missing or is not a history."""
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
            return [_run(value) for value in values["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def add(self, run: Run) -> None:
        """Append a run unless it repeats the last one. Raises UserError if the disk refuses."""
        runs = [_plain(one) for one in self.runs()]
        if runs and runs[-1] == _plain(run):
            return
        text = json.dumps({"runs": [*runs, _plain(run)]}, indent=1, sort_keys=True)
        try:
            write_atomic(self.file, text.encode())
        except OSError as error:
            raise disk_error(error, self.file.parent) from error


def _plain(run: Run) -> Any:
    return json.loads(json.dumps(asdict(run)))


def _run(value: dict[str, Any]) -> Run:
    lists = {name: tuple(value[name]) for name in ("labels", "tasks")}
    return Run(**(value | lists))
