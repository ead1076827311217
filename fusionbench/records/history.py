"""Requests and ablation designs of a folder; the report derives the missing cells from them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fusionbench.api.errors import disk_error
from fusionbench.records.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Run:
    """One request: the grid of cells it resolved to, and the tasks that it left out."""

    study: Mapping[str, Any]
    """The study's fields."""
    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Task -> why it was left out."""
    version: str = ""


class History:
    """`study.json`: the requests of a folder, oldest first; a repetition of the last is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def runs(self) -> list[Run]:
        """All requests; empty for a file that is missing or is no history."""
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
            return [_run(value) for value in values["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def add(self, run: Run) -> None:
        """Append a request unless it repeats the last one. Raises UserError if the disk refuses."""
        runs = self.runs()
        if runs and _plain(runs[-1]) == _plain(run):
            return
        _write(self.file, requests_text([*runs, run]))


def requests_text(runs: Sequence[Run]) -> str:
    """The contents of `study.json`."""
    return json.dumps({"runs": [_plain(run) for run in runs]}, indent=1, sort_keys=True)


def _write(file: Path, text: str) -> None:
    try:
        write_atomic(file, text.encode())
    except OSError as error:
        raise disk_error(error, file.parent) from error


def _plain(run: Run) -> Any:
    return json.loads(json.dumps(asdict(run)))


def _run(value: dict[str, Any]) -> Run:
    lists = {name: tuple(value[name]) for name in ("labels", "tasks")}
    return Run(**(value | lists))


# Ids, unlike names, refer to one version of one method under one budget.
ABLATIONS = "ablations.json"

Kind = Literal["one_factor_out", "factorial"]


@dataclass(frozen=True, kw_only=True)
class Arm:
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

    kind: Kind
    method: str
    arms: tuple[Arm, ...]
    switches: tuple[str, ...] = ()
    """Factorial: the switches, as `memory=rebuilt` with the level that counts as off."""
    void: int = 0
    """Number of combinations that were skipped, since a switch has no effect in them."""


@dataclass(frozen=True, kw_only=True)
class Planned:
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


def read_designs(folder: Path) -> list[Planned]:
    """All designs of a folder; empty for a file that is missing or is no list of designs."""
    try:
        values = json.loads((folder / ABLATIONS).read_text(encoding="utf-8"))
        return [_planned(value) for value in values["ablations"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def note_design(folder: Path, planned: Planned) -> None:
    """Add a design in place of an earlier one of its key. Raises UserError if the disk refuses."""
    others = [one for one in read_designs(folder) if one.key != planned.key]
    _write(folder / ABLATIONS, designs_text([*others, planned]))


def designs_text(designs: Sequence[Planned]) -> str:
    """The contents of `ablations.json`."""
    return json.dumps({"ablations": [asdict(one) for one in designs]}, indent=1)


def _planned(value: dict[str, Any]) -> Planned:
    design = value["design"]
    arms = tuple(Arm(**arm | {"on": tuple(arm["on"])}) for arm in design["arms"])
    cells = {
        arm: {task: tuple(ids) for task, ids in tasks.items()}
        for arm, tasks in value["cells"].items()
    }
    built = Design(**design | {"arms": arms, "switches": tuple(design["switches"])})
    return Planned(**value | {"design": built, "cells": cells})
