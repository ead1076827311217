"""The two kinds of work a worker does. Plain data, so that it can be sent to any process."""

from dataclasses import dataclass

from fusionbench.records.cell import RunOptions
from fusionbench.study.plan import Cell


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Make sure that a task's bundle and all hidden states its methods tap are on disk."""

    cells: tuple[Cell, ...]
    """All of one task and encoder."""

    @property
    def task(self) -> str:
        """The task's name."""
        return self.cells[0].spec.task


@dataclass(frozen=True, kw_only=True)
class CellJob:
    """Train the missing seeds of one method on one task."""

    cells: tuple[Cell, ...]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.cells[0].spec.task


Job = EncodeJob | CellJob


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a worker reports: a cell begun or ended, or the end of a job."""

    kind: str
    """Of a cell: `begun`, `tuned`, `done`, `skipped`, `failed`. Of a job: `broken`, `idle` (over).
    Of a worker: `lost` (it died), `fatal` (no work is possible)."""
    cell: Cell | None = None
    text: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What every worker is started with."""

    options: RunOptions
