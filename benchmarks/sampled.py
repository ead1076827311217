"""Cells of a study run in this process, in a folder of their own: what `launchers` does, alone."""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fusionbench.launchers.jobs import EncodeJob
from fusionbench.launchers.runner import Runner
from fusionbench.records.cell import RunOptions
from fusionbench.records.store import Store
from fusionbench.registry.catalog import read_catalog
from fusionbench.study.plan import Cell, TrainJob, make_plan, resolve
from fusionbench.study.study import Study

# Every layer of every task, at the sizes of the preset `paper`.
_CACHE_GIB = 100.0
RANDOM = Path(__file__).parent / "random_vit.py"


@contextmanager
def empty_cache() -> Iterator[None]:
    """No hidden state is there at the start."""
    before = os.environ.get("FUSIONBENCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FUSIONBENCH_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["FUSIONBENCH_CACHE"]
            if before is not None:
                os.environ["FUSIONBENCH_CACHE"] = before


def jobs(study: Study) -> list[tuple[Cell, ...]]:
    """Seeds of one method on one task, job by job; `random_vit.py` is there to be named."""
    plan = make_plan(resolve(study, read_catalog((str(RANDOM),))), ())
    return [job.cells for job in plan.jobs()]


def _training(cells: Sequence[Cell]) -> TrainJob:
    return TrainJob(cells=tuple(cells), first=cells[0])


def _encoding(cells: Sequence[Cell]) -> EncodeJob:
    by_method: dict[str, list[Cell]] = {}
    for cell in cells:
        by_method.setdefault(cell.chosen.label, []).append(cell)
    trainings = tuple(_training(some) for some in by_method.values())
    return EncodeJob(task=cells[0].spec.task, trainings=trainings)


def encode(cells: Sequence[Cell], device: str) -> float:
    """Seconds to write the hidden states that these cells need, in one pass of the encoder."""
    with tempfile.TemporaryDirectory() as folder:
        Store.create(folder)
        started = time.perf_counter()
        Runner(RunOptions(out=folder, device=device)).encode(_encoding(cells))
        return time.perf_counter() - started


def run(
    cells: Iterable[Sequence[Cell]], device: str, *, compile: str = "auto"
) -> tuple[float, float]:
    """Encode what is missing and run these jobs: seconds of encoding and of cells.

    Raises RuntimeError for a cell that fails: its time would mean nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        Store.create(folder)
        options = RunOptions(out=folder, device=device, compile=compile, cache_gib=_CACHE_GIB)
        runner = Runner(options)
        encoding = training = 0.0
        for job in cells:
            started = time.perf_counter()
            runner.encode(_encoding(job))
            runner._materials_of(_training(job))
            middle = time.perf_counter()
            for event in runner.run(_training(job)):
                if event.kind == "failed":
                    raise RuntimeError(event.text)
            encoding += middle - started
            training += time.perf_counter() - middle
    return encoding, training
