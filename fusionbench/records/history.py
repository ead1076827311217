"""Requests and ablation designs of a folder; the report derives the missing cells from them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fusionbench.api.errors import disk_error
from fusionbench.records.files import write_atomic


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
    version: str = ""


class History:
    """`study.json`: the requests of a folder, oldest first; a repetition of the last is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def requests(self) -> list[Request]:
        """All requests; empty for a file that is missing or is no history."""
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
            return [_request(value) for value in values["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def add(self, request: Request) -> None:
        """Append a request unless it repeats the last one. Raises UserError if the disk refuses."""
        earlier = self.requests()
        if earlier and _plain(earlier[-1]) == _plain(request):
            return
        _write(self.file, requests_text([*earlier, request]))


def requests_text(requests: Sequence[Request]) -> str:
    """The contents of `study.json`."""
    return json.dumps({"runs": [_plain(one) for one in requests]}, indent=1, sort_keys=True)


def _write(file: Path, text: str) -> None:
    try:
        write_atomic(file, text.encode())
    except OSError as error:
        raise disk_error(error, file.parent) from error


def _plain(request: Request) -> Any:
    values = asdict(request)
    if not request.same:
        # Requests of the track `probe` keep the text that they had without this field.
        del values["same"]
    return json.loads(json.dumps(values))


def _request(value: dict[str, Any]) -> Request:
    lists = {name: tuple(value[name]) for name in ("labels", "tasks")}
    return Request(**(value | lists))


ABLATIONS = "ablations.json"


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
        """Equal for two requests of one ablation."""
        return (self.design.kind, self.design.method, self.encoder, *self.design.switches)


def read_designs(folder: Path) -> list[PlannedAblation]:
    """All designs of a folder; empty for a file that is missing or is no list of designs."""
    try:
        values = json.loads((folder / ABLATIONS).read_text(encoding="utf-8"))
        return [_planned(value) for value in values["ablations"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def note_design(folder: Path, planned: PlannedAblation) -> None:
    """Add a design in place of an earlier one of its key. Raises UserError if the disk refuses."""
    others = [one for one in read_designs(folder) if one.key != planned.key]
    _write(folder / ABLATIONS, designs_text([*others, planned]))


def designs_text(designs: Sequence[PlannedAblation]) -> str:
    """The contents of `ablations.json`."""
    return json.dumps({"ablations": [asdict(one) for one in designs]}, indent=1)


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
    return PlannedAblation(**value | {"design": Design(**design), "cells": cells})


_RENAMED = {"arms": "variants", "void": "skipped"}
"""Keys of earlier files."""
