"""Linear-probe scores of single layers: `DIR/probes/<task>.json`; standard library only.

A map holds one score per hidden state of one encoder on one task, from `harness.probes`. It names
the weights, the task's data and the split sizes, so that a figure shows only the study's own maps.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem, UserError
from fusionbench.records.cell import checksum, json_object
from fusionbench.records.files import content, why, write_atomic
from fusionbench.records.schema import check_types

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
        """The fields that decide the scores."""
        names = ("encoder", "weights", "image_size", "task", "task_version", "data")
        return {name: getattr(self, name) for name in (*names, "n", "n_train", "n_val")}


def probe_file(folder: Path, task: str) -> Path:
    """The file of a task's map."""
    return folder / FOLDER / f"{task}.json"


def probe_files(folder: Path) -> list[Path]:
    """The files of all maps of a folder of results, in the order of tasks."""
    return sorted((folder / FOLDER).glob("*.json"))


def write_probe(folder: Path, found: ProbeMap) -> Path:
    """Write a map atomically and return its file. Raises OSError."""
    file = probe_file(folder, found.task)
    values = json.loads(json.dumps(asdict(found)))
    text = json.dumps(values | {"checksum": checksum(values)}, indent=1, sort_keys=True)
    write_atomic(file, f"{text}\n".encode())
    return file


def read_probe(file: Path) -> ProbeMap:
    """Read a map back. Raises UserError for a file that holds none."""
    try:
        values = json_object(content(file).decode())
        # Maps of earlier versions have no checksum.
        if (claimed := values.pop("checksum", None)) is not None and claimed != checksum(values):
            raise ValueError("edited: the checksum does not match the contents")
        lists = {name: tuple(float(score) for score in values[name]) for name in ("layers", "val")}
        found = ProbeMap(**values | lists)
        check_types(found)
        if not all(0 <= score <= 1 for score in (*found.layers, *found.val)):
            raise ValueError("a score outside 0 to 1")
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        hint = "remove it and run `fusionbench probe-layers` again"
        raise UserError(f"{file} is no probe map: {why(error)}", hint) from error
    if found.schema != SCHEMA:
        raise UserError(f"{file}: schema {found.schema}, this version reads {SCHEMA}")
    return found


def probe_maps(folder: Path, problems: list[Problem]) -> Iterator[ProbeMap]:
    """All maps of a folder of results by task; unreadable files are added to `problems`."""
    for file in probe_files(folder):
        try:
            yield read_probe(file)
        except UserError as error:
            problems.append(Problem(source=str(file), message=f"ignored: {error.message}"))
