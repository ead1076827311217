"""Joins folders of results into one in the compact form."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fusionbench.api.errors import Problem, UserError, disk_error
from fusionbench.records import cost, pictures, probes
from fusionbench.records.archive import Contents, write_archive
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import why
from fusionbench.records.history import (
    ABLATIONS,
    PlannedAblation,
    designs_text,
    read_designs,
    requests_text,
)
from fusionbench.records.schema import normal_text
from fusionbench.records.store import Store
from fusionbench.records.verified import answers_file

_FREE = ("seconds", "provenance", "schema", "scores", "left_out", "distinct", "tokens")
"""Fields in which two runs of a cell with equal outcomes may differ."""
_AGAIN = "run the study again to replace it"


def merge(folders: Sequence[Path], out: Path) -> tuple[int, list[Problem]]:
    """Write the records of all folders into a new folder `out`, in the compact form.

    Returns the number of cells and tuning runs, and the files that were left out. A record that
    several folders hold is written once. Raises UserError for one whose contents differ, for a
    folder without records, and if `out` holds anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already", "choose a new folder with -o")
    stores = [Store.open(folder) for folder in folders]
    joined = _Joined()
    for store in stores:
        joined.add(store)
    contents = joined.contents(stores)
    if not contents.lines:
        named = ", ".join(map(str, folders))
        raise UserError(f"no records in {named}", "run a study into one of them first")
    _publish(contents, out)
    return len(contents.lines), joined.problems


class _Joined:
    """The records of several folders by id."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[CellRecord, Store]] = {}
        self.failures: dict[str, CellRecord] = {}
        self.profiles: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.pictures: dict[str, str] = {}
        self.problems: list[Problem] = []

    def add(self, store: Store) -> None:
        """Add the records of a folder. Raises UserError for one with other contents."""
        finished = store.finished(reread=True)
        for record in store.records(finished | store.tuning()):
            cell = record.id
            known = self.records.setdefault(cell, (record, store))
            if known[0] != record:
                _check_same(cell, known, (record, store))
                # Either may stay; the choice does not depend on the order of folders.
                self.records[cell] = max(known, (record, store), key=_preference)
        for record in store.failures(finished):
            known_failure = self.failures.setdefault(record.id, record)
            self.failures[record.id] = max(known_failure, record, key=repr)
        for profile in cost.read(store.folder, self.problems):
            _add(self.profiles, profile.id, profile.to_json(), f"profile {profile.id}")
        for file in probes.probe_files(store.folder):
            name = str(file.relative_to(store.folder))
            _add(self.files, name, file.read_bytes(), f"the file {name}")
        for shown in pictures.read_pictures(store.folder, self.problems):
            # Versions of Pillow draw other bytes of the same picture: any is as good.
            name, line = pictures.picture_name(shown), shown.to_json()
            self.pictures[name] = min(self.pictures.get(name, line), line)
        self.problems += store.problems

    def contents(self, stores: Sequence[Store]) -> Contents:
        """The contents of the merged folder."""
        found = Contents(profiles=self.profiles, pictures=self.pictures, files=self.files)
        for cell, (record, store) in self.records.items():
            found.lines[cell], facts = normal_text(record)
            found.facts.update(facts)
            if record.outcomes:
                found.outcomes[cell] = store.outcome_bytes(cell, record.outcomes)
            if record.answers:
                found.answers[cell] = _answers(record, store)
            if record.items and record.items not in found.items:
                found.items[record.items] = store.items(record)
        for cell, record in self.failures.items():
            if cell not in self.records:
                found.failures[cell], facts = normal_text(record)
                found.facts.update(facts)
        found.files.update(_requests(stores))
        return found


def _answers(record: CellRecord, store: Store) -> bytes:
    """The file of a record's answers, byte for byte; UserError if it is missing or damaged.

    Not packed again: another zlib gives other bytes, and the record holds the hash of these.
    """
    try:
        return store.answer_bytes(record.id, record.answers)
    except (KeyError, OSError, ValueError) as error:
        path = answers_file(store.folder, record.id)
        raise UserError(f"{path}: {why(error)}", _AGAIN) from error


def _preference(one: tuple[CellRecord, Store]) -> tuple[int, str]:
    return one[0].schema, repr(one[0])


def _check_same(
    cell: str, first: tuple[CellRecord, Store], second: tuple[CellRecord, Store]
) -> None:
    """Raise UserError if two records of a cell differ in more than time and machine."""
    one, two = (asdict(record) for record, _ in (first, second))
    # As text, since a diverged run has NaN.
    texts = {name: (json.dumps(one[name]), json.dumps(two[name])) for name in one}
    for name in _FREE:
        del texts[name]
    if _same_answers(first, second):
        del texts["answers"]
    if different := [name for name, (a, b) in texts.items() if a != b]:
        shown = "; ".join(
            f"{store.folder}: {', '.join(f'{n}={_short(getattr(record, n))}' for n in different)}"
            for record, store in (first, second)
        )
        spec = first[0].spec
        what = f"cell {cell} ({spec.method} on {spec.task}, seed {spec.seed})"
        raise UserError(f"{what} differs: {shown}", "remove its record from one of the folders")


def _same_answers(first: tuple[CellRecord, Store], second: tuple[CellRecord, Store]) -> bool:
    """Whether two runs gave the same texts, which two versions of zlib pack to other bytes."""
    one, two = first[0].answers, second[0].answers
    if one == two or not (one and two):
        return one == two
    return first[1].answers(first[0]) == second[1].answers(second[0])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _add(known: dict[str, Any], name: str, value: str | bytes, what: str) -> None:
    if known.setdefault(name, value) != value:
        first, second = (_short(one) for one in (known[name], value))
        raise UserError(f"{what} differs: {first} and {second}", "remove it from one folder")


def _requests(stores: Sequence[Store]) -> Iterator[tuple[str, bytes]]:
    """`study.json` with each request once, `ablations.json` with each design once."""
    runs = {requests_text([run]): run for store in stores for run in store.history.requests()}
    if runs:
        yield "study.json", requests_text(list(runs.values())).encode()
    designs: dict[tuple[str, ...], PlannedAblation] = {}
    for store in stores:
        for planned in read_designs(store.folder):
            known = designs.setdefault(planned.key, planned)
            designs[planned.key] = replace(known, cells=_union(known.cells, planned.cells))
    if designs:
        yield ABLATIONS, designs_text(list(designs.values())).encode()


def _union(
    first: Mapping[str, Mapping[str, tuple[str, ...]]],
    second: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Variant -> task -> ids of both, each once."""
    return {
        label: {
            task: tuple(
                dict.fromkeys(
                    (*first.get(label, {}).get(task, ()), *second.get(label, {}).get(task, ()))
                )
            )
            for task in {**first.get(label, {}), **second.get(label, {})}
        }
        for label in {**first, **second}
    }


def _publish(contents: Contents, out: Path) -> None:
    """Write beside `out` and rename, so that a kill or a full disk leaves no half of it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            write_archive(Path(place) / "new", contents)
            (Path(place) / "new").replace(out)
    except OSError as error:
        raise disk_error(error, out) from error
