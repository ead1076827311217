"""Failures of cells: each is kept, none counts as a record, so that its cell is tried again."""

from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from pathlib import Path

from fusionbench.api.errors import disk_error
from fusionbench.newfile import free_name, write_new
from fusionbench.records import CellRecord


def write_failure(folder: Path, record: CellRecord) -> None:
    """Add `<id>.<n>.json` to the folder. Raises UserError if the disk refuses."""
    try:
        folder.mkdir(exist_ok=True)
        while not write_new(free_name(folder, record.id), record.to_json().encode()):
            continue
    except OSError as error:
        raise disk_error(error, folder) from error


def latest_failures(folder: Path, finished: Callable[[], Container[str]]) -> Iterator[CellRecord]:
    """The last failure of each cell that did not get a record later, in the order of ids.

    `finished` is asked only where there are failures: it looks at every file of the results.
    """
    latest: dict[str, tuple[int, Path]] = {}
    files = list(folder.glob("*.json"))
    there = finished() if files else ()
    for path in files:
        cell, _, number = path.stem.partition(".")
        if number.isdigit() and cell not in there:
            latest[cell] = max(latest.get(cell, (0, path)), (int(number), path))
    for _, (_, path) in sorted(latest.items()):
        with suppress(ValueError, OSError):
            yield CellRecord.from_json(path.read_text(encoding="utf-8"))
