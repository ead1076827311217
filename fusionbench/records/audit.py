"""Whether every stored file of a folder holds what its name and the records say.

A report reads what it shows; this reads everything, whether a record still uses it or not.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from fusionbench.api.errors import Problem, UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import sha256_of
from fusionbench.records.folder import MODELS
from fusionbench.records.store import Store


def audit(store: Store, finished: Mapping[str, Path]) -> list[Problem]:
    """What is wrong with the files of a folder, each named once.

    `finished`: what the store found when it read every record.
    """
    found = [*store.problems]
    before = len(store.problems)
    store.tuning()
    items: dict[str, int | str] = {}
    models: dict[str, str] = {}
    for name, record in zip(finished, store.records(finished), strict=False):
        found += _of_record(store, name, record, items)
        if record.model_weights:
            models.setdefault(record.model, record.model_weights)
    found += _of_models(store.folder / MODELS, models)
    list(store.failures(finished))
    found += store.problems[before:]
    file = store.folder / "study.json"
    if file.exists() and not store.history.requests():
        found.append(Problem(source=str(file), message="no request can be read from it"))
    return list(dict.fromkeys(found))


def _of_record(
    store: Store, name: str, record: CellRecord, items: dict[str, int | str]
) -> Iterator[Problem]:
    """What is wrong with a record, its outcomes and its items; `items` remembers those seen."""
    source = f"{store.folder}: cell {name}"
    if record.id != name:
        yield Problem(source=source, message=f"its specification has the id {record.id}")
    if not record.outcomes:
        return
    if record.items not in items:
        items[record.items] = _count(store, record)
    count = items[record.items]
    if isinstance(count, str):
        yield Problem(source=source, message=count)
        return
    try:
        outcomes = len(store.outcomes(record))
    except UserError as error:
        yield Problem(source=source, message=error.message)
        return
    if not outcomes == count == record.examples:
        message = f"{outcomes} outcomes, {count} items and {record.examples} examples"
        yield Problem(source=source, message=message)


def _count(store: Store, record: CellRecord) -> int | str:
    """The number of a record's items, or what is wrong with their file."""
    try:
        found = store.items(record)
    except UserError as error:
        return error.message
    if found.hash != record.items:
        return f"its items were damaged or edited (items {record.items})"
    return len(found.names)


def _of_models(home: Path, models: Mapping[str, str]) -> Iterator[Problem]:
    """Trained weights that differ from their record; weights that were removed are no fault."""
    for name, digest in sorted(models.items()):
        file = home / f"{name}.safetensors"
        if file.exists() and sha256_of(file) != digest:
            yield Problem(source=str(file), message="the trained weights were damaged or edited")
