"""Where a task's data comes from: its own loader, or a packed folder. No torch here."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from fusionbench.api.task import TaskData, data_hash, validate
from fusionbench.harness.bundle import keep
from fusionbench.packed import packed_data, packed_tasks
from fusionbench.records.cell import Budget, canonical
from fusionbench.records.files import cache_dir, write_atomic
from fusionbench.records.parallel import in_order
from fusionbench.registry.catalog import TaskCard
from fusionbench.registry.plugins import load_task


def load_data(card: TaskCard) -> TaskData:
    """A task's data; ValueError if the task breaks the contract."""
    if (packed := packed_data(card.name)) is not None:
        return packed
    data = load_task(card).load()
    validate(data)
    return data


def task_hash(card: TaskCard) -> str:
    """Hash of a task's data, remembered for as long as its source files stay the same."""
    return task_hashes([card])[card.name]


def task_hashes(cards: Sequence[TaskCard], keep_for: Budget | None = None) -> Mapping[str, str]:
    """`task_hash` by name; what is not known yet is looked at several at a time.

    What was rendered or read for it is thrown away; with a budget its cut is kept for the encoder.
    """
    found = {card.name: _known(card) for card in cards}
    unknown = [card for card in cards if not found[card.name]]
    looks = in_order([partial(_look, card, keep_for) for card in unknown])
    return found | {card.name: seen for card, seen in zip(unknown, looks, strict=True)}


def _known(card: TaskCard) -> str:
    if card.name in (packed := packed_tasks()):
        return packed[card.name]
    note = _note(card)
    return note.read_text().strip() if note.is_file() else ""


def _look(card: TaskCard, budget: Budget | None) -> str:
    data = load_data(card)
    found = data_hash(data)
    # Without a writable cache folder the data is read each time: slower, never wrong.
    with suppress(OSError):
        write_atomic(_note(card), found.encode())
        if budget is not None:
            keep(card.name, found, data, budget)
    return found


def _note(card: TaskCard) -> Path:
    stamp = canonical([card.name, card.version, sorted(_stamps(card))])
    return cache_dir("data", hashlib.sha256(stamp.encode()).hexdigest()[:24])


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
