"""What single layers know, on disk: `DIR/probes/<task>.json`. Standard library only.

A map holds one score per hidden state of one encoder on one task, found by `encoders.probe`. It is
bound to the weights, the task's data and the split sizes, so that a figure cannot show one
encoder's map beside another's study.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem, UserError
from fusionbench.records.cell import json_object
from fusionbench.records.files import write_atomic

FOLDER = "probes"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ProbeMap:
    """Scores of linear probes, one for each of `hs[0..L]`, 0 to 1."""

    encoder: str
    weights: str
    """Fingerprint of the encoder at this input size, as in the records."""
    image_size: int
    task: str
    task_version: int
    data: str
    """Hash of the task's data, as in the records."""
    group: str
    metric: str
    chance: float
    layers: tuple[float, ...]
    """On test; the penalty of each was chosen on val."""
    val: tuple[float, ...]
    n: int
    """Test examples."""
    n_train: int
    n_val: int
    provenance: dict[str, Any]
    schema: int = SCHEMA

    @property
    def identity(self) -> dict[str, object]:
        """What decides the scores."""
        names = ("encoder", "weights", "image_size", "task", "task_version", "data")
        return {name: getattr(self, name) for name in (*names, "n", "n_train", "n_val")}


def probe_file(folder: Path, task: str) -> Path:
    """Where a task's map lies."""
    return folder / FOLDER / f"{task}.json"


def write_probe(folder: Path, found: ProbeMap) -> Path:
    """Write a map, whole or not at all. Raises OSError."""
    file = probe_file(folder, found.task)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(found), indent=1, sort_keys=True)
    write_atomic(file, f"{text}\n".encode())
    return file


def read_probe(file: Path) -> ProbeMap:
    """Read a map back. Raises UserError for a file that holds none."""
    try:
        values = json_object(file.read_text(encoding="utf-8"))
        lists = {name: tuple(float(score) for score in values[name]) for name in ("layers", "val")}
        found = ProbeMap(**values | lists)
    except (OSError, ValueError, TypeError, KeyError) as error:
        hint = "remove it and run `fusionbench probe-layers` again"
        raise UserError(f"{file} is no map of probes: {error}", hint) from error
    if found.schema != SCHEMA:
        raise UserError(f"{file}: schema {found.schema}, this version reads {SCHEMA}")
    return found


def probe_maps(folder: Path, problems: list[Problem]) -> Iterator[ProbeMap]:
    """All maps of a folder of results by task; files that are none are noted in `problems`."""
    for file in sorted((folder / FOLDER).glob("*.json")):
        try:
            yield read_probe(file)
        except UserError as error:
            problems.append(Problem(source=str(file), message=f"ignored: {error.message}"))
