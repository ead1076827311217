"""All that figures are drawn from: the scores of one condition, and what lies beside the records.

`DIR/profiles/*.json` hold measured cost, `DIR/probes/*.json` a score for each single layer.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from fusionbench.report.tables import Row, names
from fusionbench.scores import ScoreTable
from fusionbench.store import Store


@dataclass(frozen=True, kw_only=True)
class Material:
    """One condition: its table of suite tasks and what was found for its encoder."""

    table: ScoreTable
    store: Store
    baseline: str = ""
    contrasts: Sequence[Row] = ()
    planned: Sequence[str] = ()
    """Methods of the planned contrasts."""
    margins: tuple[float, float] = (1.0, 2.0)
    """Differences that do not matter, in points: of the suite, of a task."""
    profiles: Sequence[Mapping[str, Any]] = ()
    probes: Sequence[Mapping[str, Any]] = ()
    labels: Sequence[str] = field(init=False)
    """Methods as a reader should see them, in the order of the table."""
    in_encoder: Sequence[bool] = field(init=False)
    """Whether the encoder ran in every step of a method."""

    def __post_init__(self) -> None:
        """What several figures ask for is found once."""
        table = self.table
        inside = [
            any(run.in_encoder for run in table.row(row)) for row in range(len(table.methods))
        ]
        object.__setattr__(self, "labels", tuple(names(table)))
        object.__setattr__(self, "in_encoder", tuple(inside))

    def of(self, keep: Bool[np.ndarray, " task"]) -> "Material":
        """The same for some of the tasks."""
        return replace(self, table=self.table.pick(keep))

    def row(self, method: str) -> int | None:
        """The place of a method in the table."""
        return self.table.methods.index(method) if method in self.table.methods else None


def objects(folder: Path) -> list[dict[str, Any]]:
    """The JSON objects in a folder, file by file, those of a list one by one.

    ValueError with the file's name for anything else.
    """
    return [found for file in sorted(folder.glob("*.json")) for found in _objects(file)]


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.parent.name}/{file.name}: {error}") from error
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, dict):
            raise ValueError(f"{file.parent.name}/{file.name}: holds {value!r}, not an object")
        yield value
