"""`ablations.json`: the designs that were run into a folder, with the ids of their cells.

A report takes its ablation tables from here: ids, unlike names, mean one version of one method
under one budget. Standard library only.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fusionbench.api.errors import disk_error
from fusionbench.cache import write_atomic

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
