"""A record by what a user types: its id, the start of it, the id of its model, or its file."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.folder import MODELS
from fusionbench.records.store import Store

_FOLDERS = ("cells", "answers", "outcomes", MODELS)
"""Folders of a folder of results whose files are named by a cell or a model."""
_SHOWN = 5


def split_place(text: str, folder: Path) -> tuple[Path, str, bool]:
    """The folder of results that a text names, the id in it, and whether it is a model's.

    `folder` is the place of an id alone and of `models/<id>`; a longer path has its own.
    """
    path = Path(text)
    part = path.parent.name
    name = path.name.split(".")[0]
    if part not in _FOLDERS:
        return folder, text, False
    home = path.parent.parent
    return (folder if home == Path() else home), name, part == MODELS


def find_record(store: Store, name: str, *, model: bool = False) -> CellRecord:
    """The record of an id of a cell or model, or of the unique start of one.

    Of a model, which has a record for each task, the first by task. `model`: look for models alone.
    Raises UserError for an id that no record has, with the nearest, and for a start of several.
    """
    if not model and (exact := store.find(name)) is not None:
        return exact
    records = list(store.records())
    cells = {} if model else {record.id: [record] for record in records}
    found = _starting(cells, name) or _starting(_models(records), name)
    if len(found) > 1:
        shown = ", ".join(_line(one[0], key) for key, one in sorted(found.items())[:_SHOWN])
        raise UserError(
            f"{len(found)} ids in {store.folder} start with {name!r}: {shown}",
            "give more of its digits",
        )
    if not found:
        raise _unknown(store.folder, name, records)
    (group,) = found.values()
    return min(group, key=lambda record: record.spec.task)


def of_model(store: Store, record: CellRecord) -> list[CellRecord]:
    """The records of the same model, sorted by task."""
    same = [one for one in store.records() if one.model and one.model == record.model]
    return sorted(same or [record], key=lambda one: one.spec.task)


def twins(store: Store, record: CellRecord, method: str) -> list[CellRecord]:
    """The finished records of another method with the same encoder, training, budget and seed."""
    wanted = _condition(record)
    return [
        one
        for one in store.records()
        if one.spec.method == method and one.status == "done" and _condition(one) == wanted
    ]


def _condition(record: CellRecord) -> tuple[object, ...]:
    spec = record.spec
    return spec.track, spec.encoder, spec.weights, spec.budget, spec.training, spec.seed


def _models(records: Sequence[CellRecord]) -> dict[str, list[CellRecord]]:
    found: dict[str, list[CellRecord]] = {}
    for record in records:
        if record.model:
            found.setdefault(record.model, []).append(record)
    return found


def _starting(groups: dict[str, list[CellRecord]], name: str) -> dict[str, list[CellRecord]]:
    return {key: group for key, group in groups.items() if name and key.startswith(name)}


def _unknown(folder: Path, name: str, records: Sequence[CellRecord]) -> UserError:
    by_id = {record.id: record for record in records}
    nearest = get_close_matches(name, by_id, n=1, cutoff=0.0)
    near = f"; the nearest is {_line(by_id[nearest[0]], nearest[0])}" if nearest else ""
    return UserError(
        f"no cell or model {name!r} in {folder}{near}",
        f"its cells are the files {folder}/cells/<id>.json; name another folder with --out",
    )


def _line(record: CellRecord, key: str) -> str:
    spec = record.spec
    return f"{key} ({record.label or spec.method} on {spec.task}, seed {spec.seed})"
