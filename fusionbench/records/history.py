"""What was asked of a results folder, run by run; a report reads from it what is still missing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fusionbench.api.errors import disk_error
from fusionbench.records.files import write_atomic


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


# `ablations.json`: the designs that were run into a folder, with the ids of their cells.
#
# A report takes its ablation tables from here: ids, unlike names, mean one version of one method
# under one budget. Standard library only.


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
    """The arms of one ablation; the first is the full method."""

    kind: Kind
    method: str
    arms: tuple[Arm, ...]
    switches: tuple[str, ...] = ()
    """Factorial: the switches, as `memory=rebuilt` with the level that counts as off."""
    void: int = 0
    """Combinations that were left out, since a switch can do nothing in them."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A design on its encoder and tasks."""

    design: Design
    encoder: str
    budget: str
    """In words, for the title."""
    cells: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Arm -> task -> id of the cell of each seed."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order in which they were asked for."""
        return tuple(next(iter(self.cells.values())))

    @property
    def key(self) -> tuple[str, ...]:
        """Two designs of one key are one ablation, asked for twice."""
        return (self.design.kind, self.design.method, self.encoder, *self.design.switches)


def read_designs(folder: Path) -> list[Planned]:
    """All designs of a folder; none for a file that is missing or is something else."""
    try:
        values = json.loads((folder / ABLATIONS).read_text(encoding="utf-8"))
        return [_planned(value) for value in values["ablations"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def note_design(folder: Path, planned: Planned) -> None:
    """Add a design, in place of an earlier one of its key. Raises UserError if the disk refuses."""
    others = [one for one in read_designs(folder) if one.key != planned.key]
    values = {"ablations": [asdict(one) for one in (*others, planned)]}
    try:
        write_atomic(folder / ABLATIONS, json.dumps(values, indent=1).encode())
    except OSError as error:
        raise disk_error(error, folder) from error


def _planned(value: dict[str, Any]) -> Planned:
    design = value["design"]
    arms = tuple(Arm(**arm | {"on": tuple(arm["on"])}) for arm in design["arms"])
    cells = {
        arm: {task: tuple(ids) for task, ids in tasks.items()}
        for arm, tasks in value["cells"].items()
    }
    whole = Design(**design | {"arms": arms, "switches": tuple(design["switches"])})
    return Planned(**value | {"design": whole, "cells": cells})
