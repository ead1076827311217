"""Requests and ablation designs of a folder; the report derives the missing cells from them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fusionbench.api.errors import Problem, disk_error
from fusionbench.records.cell import checksum, json_object
from fusionbench.records.files import content, why, write_atomic
from fusionbench.records.folder import move_aside
from fusionbench.records.schema import check_types

STUDY, ABLATIONS = "study.json", "ablations.json"
_KEYS = {STUDY: "runs", ABLATIONS: "ablations"}
_STUDY = {"name": str, "note": str, "baseline": str, "seeds": int}
"""Fields of a study that reports read, and their types."""
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: the grid of cells it resolved to, and the tasks that it left out."""

    study: Mapping[str, Any]
    """The study's fields."""
    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Task -> why it was left out."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Track `vlm`: a name that differs in its reader alone -> the name that ran in its place."""
    training: str = ""
    """Track `vlm`: hash of the training that the plan made of the study; see `training_hash`."""
    version: str = ""


class History:
    """`study.json`: the requests of a folder, oldest first; a repetition of the last is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def requests(self) -> list[Request]:
        """All requests; empty for a file that is missing or damaged: see `problems`."""
        return self._read()[0]

    def problems(self) -> list[Problem]:
        """Why the requests or the ablations of the folder cannot be read, one line for each."""
        designs = self.file.with_name(ABLATIONS)
        lost = _read_list(designs, _KEYS[ABLATIONS], _planned)[1]
        said = {self.file: self._read()[1], designs: lost}
        return [
            Problem(source=str(file), message=f"ignored, nothing is known of what was asked: {one}")
            for file, one in said.items()
            if one
        ]

    def add(self, request: Request) -> list[Problem]:
        """Append a request unless it repeats the last one; a damaged file is moved aside first.

        Returns what was moved. Raises UserError if the disk refuses.
        """
        earlier, damage = self._read()
        if earlier and _plain(earlier[-1]) == _plain(request):
            return []
        moved = _moved(self.file) if damage else []
        _write(self.file, requests_text([*earlier, request]))
        return moved

    def _read(self) -> tuple[list[Request], str]:
        return _read_list(self.file, _KEYS[STUDY], _request)


def _read_list(
    file: Path, key: str, build: Callable[[dict[str, Any]], Value]
) -> tuple[list[Value], str]:
    """What a file holds under a key, and why it holds nothing that can be read."""
    try:
        values = json_object(content(file).decode())
        claimed = values.pop("checksum", None)
        if set(values) != {key} or not isinstance(values[key], list):
            raise ValueError(f"not an object with a list {key!r}")
        # Files of earlier versions have no checksum.
        if claimed is not None and claimed != checksum(values):
            raise ValueError("edited: the checksum does not match the contents")
        return [build(value) for value in values[key]], ""
    except FileNotFoundError:
        return [], "a link to nothing" if file.is_symlink() else ""
    except (OSError, ValueError) as error:
        return [], why(error)
    except (KeyError, TypeError, AttributeError) as error:
        return [], f"not what this version reads: {error}"


def _moved(file: Path) -> list[Problem]:
    try:
        moved = move_aside(file, file.parent)
    except OSError as error:
        raise disk_error(error, file.parent) from error
    said = "damaged: moved to {}, and begun anew"
    return [Problem(source=str(file), message=said.format(moved))] if moved else []


def _listed(key: str, values: Sequence[Any], **layout: Any) -> str:
    """The contents of a file, with its checksum."""
    plain = {key: json.loads(json.dumps(list(values)))}
    return json.dumps({**plain, "checksum": checksum(plain)}, **layout)


def requests_text(requests: Sequence[Request]) -> str:
    """The contents of `study.json`."""
    return _listed(_KEYS[STUDY], [_plain(one) for one in requests], indent=1, sort_keys=True)


def _write(file: Path, text: str) -> None:
    try:
        write_atomic(file, text.encode())
    except OSError as error:
        raise disk_error(error, file.parent) from error


def _plain(request: Request) -> Any:
    # Requests of the track `probe` keep the text that they had without these fields.
    empty = [name for name in ("same", "training") if not getattr(request, name)]
    values = {name: value for name, value in asdict(request).items() if name not in empty}
    return json.loads(json.dumps(values))


def _request(value: dict[str, Any]) -> Request:
    found = Request(**(value | {name: tuple(value[name]) for name in ("labels", "tasks")}))
    check_types(found)
    for name, kind in _STUDY.items():
        if type(found.study.get(name, kind())) is not kind:
            raise ValueError(f"{name} of a study is {found.study[name]!r}, not {kind.__name__}")
    return found


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of the method."""

    label: str
    """As `run --methods` takes it, and as records are labelled: `mema[reduction=2]`."""
    switch: str = ""
    """One change: the setting that differs; empty for the full method."""
    level: str = ""
    on: tuple[bool, ...] = ()
    """Factorial: the state of each switch."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """The variants of one ablation; the first is the full method."""

    kind: Literal["one_factor_out", "factorial"]
    method: str
    variants: tuple[Variant, ...]
    switches: tuple[str, ...] = ()
    """Factorial: the switches, as `memory=rebuilt` with the level that counts as off."""
    skipped: int = 0
    """Number of combinations that were skipped, since a switch has no effect in them."""


@dataclass(frozen=True, kw_only=True)
class PlannedAblation:
    """A design with its encoder and the ids of its cells."""

    design: Design
    encoder: str
    budget: str
    """For the title."""
    cells: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Variant -> task -> id of the cell of each seed."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order of the request."""
        return tuple(next(iter(self.cells.values())))

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for two requests of one ablation, which may name other tasks and seeds."""
        design, budget = self.design, re.sub(r", \d+ seeds$", "", self.budget)
        variants = sorted(variant.label for variant in design.variants)
        return (design.kind, design.method, self.encoder, budget, *design.switches, *variants)


def read_designs(folder: Path) -> list[PlannedAblation]:
    """All designs of a folder; empty for a file that is missing or damaged: `History.problems`."""
    return _read_list(folder / ABLATIONS, _KEYS[ABLATIONS], _planned)[0]


def note_design(folder: Path, planned: PlannedAblation) -> list[Problem]:
    """Add a design in place of an earlier one of its key; a damaged file is moved aside first.

    Returns what was moved. Raises UserError if the disk refuses.
    """
    file = folder / ABLATIONS
    known, damage = _read_list(file, _KEYS[ABLATIONS], _planned)
    moved = _moved(file) if damage else []
    _write(file, designs_text([*(one for one in known if one.key != planned.key), planned]))
    return moved


def designs_text(designs: Sequence[PlannedAblation]) -> str:
    """The contents of `ablations.json`."""
    return _listed(_KEYS[ABLATIONS], [asdict(one) for one in designs], indent=1)


def _planned(value: dict[str, Any]) -> PlannedAblation:
    design = {_RENAMED.get(name, name): found for name, found in value["design"].items()}
    design["switches"] = tuple(design["switches"])
    design["variants"] = tuple(
        Variant(**one | {"on": tuple(one["on"])}) for one in design["variants"]
    )
    cells = {
        label: {task: tuple(ids) for task, ids in tasks.items()}
        for label, tasks in value["cells"].items()
    }
    found = PlannedAblation(**value | {"design": Design(**design), "cells": cells})
    for one in (*found.design.variants, found.design, found):
        check_types(one, skip=("design", "variants"))
    if not (found.design.variants and set(cells) <= {one.label for one in found.design.variants}):
        raise ValueError("cells of variants that the design does not have")
    return found


_RENAMED = {"arms": "variants", "void": "skipped"}
"""Keys of earlier files."""
