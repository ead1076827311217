"""The facts of its cards and of this machine in the record of a cell, and records of lost cells.

No torch: the process that plans writes the failures of cells whose workers are gone.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from fusionbench.launchers.jobs import Event
from fusionbench.records.cell import CellRecord, RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.provenance import (
    code_state,
    hardware,
    plugin_code,
    plugin_files,
    software,
)
from fusionbench.study.plan import Cell

_LONGEST = 4000
"""Characters of a reason."""


def signed(cell: Cell, record: CellRecord, machine: Mapping[str, str]) -> CellRecord:
    """The record with the facts of its cards, and with what it was made by."""
    card, task = cell.chosen.card, cell.task
    plugged = plugin_files(card, task, cell.encoder)
    return replace(
        record,
        label=cell.chosen.label,
        family=card.family,
        control=card.control,
        representative=card.representative and cell.chosen.label == card.name,
        reads_answers=card.reads_answers,
        group=task.group,
        task_family=task.family,
        in_suite=task.in_suite,
        provenance={
            "code": code_state(),
            "software": software(),
            "hardware": machine,
            "method": card.source,
            "task": task.source,
            "encoder": cell.encoder.origin,
            "plugin_files": plugged,
        }
        | ({"plugin_code": plugin_code(card, task, cell.encoder)} if plugged else {}),
    )


def shortened(text: str) -> str:
    """The text, or its start and its end: a plug-in may raise an error of any length."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n...\n{text[-half:]}"


class Failures:
    """Records cells whose worker died, hung or was never started."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options

    @cached_property
    def _store(self) -> Store:
        return Store.open(self.options.out)

    def __call__(self, cell: Cell, reason: str) -> Event:
        """Write the failure; its event. Raises FatalError if the disk refuses."""
        # The name of a GPU would need torch.
        machine = {**hardware("cpu"), "device": self.options.device}
        record = CellRecord(spec=cell.spec, status="failed", reason=shortened(reason))
        self._store.write_failure(signed(cell, record, machine))
        return Event(kind="failed", cell=cell, text=shortened(reason))
