"""Where a task's data comes from: its own loader, or a packed folder. No torch here."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from fusionbench.cache import cache_dir, write_atomic
from fusionbench.catalog import TaskCard
from fusionbench.packed import packed_data, packed_tasks
from fusionbench.plugins import load_task
from fusionbench.records import canonical
from fusionbench.task import TaskData, data_hash, validate


def load_data(card: TaskCard) -> TaskData:
    """A task's data; ValueError if the task breaks the contract."""
    if (packed := packed_data(card.name)) is not None:
        return packed
    data = load_task(card).load()
    validate(data)
    return data


def task_hash(card: TaskCard) -> str:
    """Hash of a task's data, remembered for as long as its source files stay the same."""
    if card.name in (packed := packed_tasks()):
        return packed[card.name]
    stamp = canonical([card.name, card.version, sorted(_stamps(card))])
    note = cache_dir("data", hashlib.sha256(stamp.encode()).hexdigest()[:24])
    if note.is_file() and (known := note.read_text().strip()):
        return known
    found = data_hash(load_data(card))
    # Without a writable cache folder the data is read each time: slower, never wrong.
    with suppress(OSError):
        write_atomic(note, found.encode())
    return found


def _stamps(card: TaskCard) -> Iterator[list[str | int]]:
    """Size and time of the task's code and data files and of its packages' records."""
    source = Path(card.file)
    for path in [*source.parent.glob(f"{source.stem}.*"), *source.parent.glob("_*.py")]:
        yield [path.name, *_stamp(path)]
    for package in card.needs:
        for record in _package_records(package):
            yield [package, *_stamp(record)]


def _package_records(package: str) -> Iterator[Path]:
    for name in packages_distributions().get(package, ()):
        try:
            files = distribution(name).files or ()
        except PackageNotFoundError:
            continue
        yield from (Path(str(f.locate())) for f in files if f.name == "RECORD")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
