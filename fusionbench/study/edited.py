"""Records that a plug-in made before its source was edited: found, named, set aside.

A record holds the hash of each plug-in file that made it. Built-in methods and tasks change under
their `version`, which is part of a cell's id, so that their old records do not count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.folder import exclusive, set_aside
from fusionbench.records.store import Store
from fusionbench.registry.discovery import BUILT_IN
from fusionbench.registry.provenance import code_hash, source_hash
from fusionbench.study.plan import ResolvedStudy


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a plug-in file declares and a study uses."""

    kind: str
    """`method`, `task` or `encoder`."""
    name: str
    version: int
    """0 for an encoder: its version is part of the fingerprint of its weights."""
    file: Path


@dataclass(frozen=True, kw_only=True)
class Edited:
    """A declaration whose file is not the one that made some records."""

    declared: Declared
    was: str
    """Hash of the file that made the records."""
    records: tuple[CellRecord, ...]


def edited(resolved: ResolvedStudy, store: Store) -> list[Edited]:
    """What of a study's plug-ins was edited since, with the records of the folder that it made.

    A record counts if it has the declaration's name and version, whatever study asked for it. A
    change of comments and docstrings alone is none.
    """
    declared = tuple(_declared(resolved))
    if not declared:
        return []
    records = [*store.records(store.finished()), *store.records(store.tuning())]
    found = []
    for one in declared:
        changed = [(record, was) for record in records if (was := _made_by_other(one, record))]
        if changed:
            made = tuple(record for record, _ in changed)
            found.append(Edited(declared=one, was=changed[-1][1], records=made))
    return found


def _declared(resolved: ResolvedStudy) -> Iterator[Declared]:
    cards = {("method", chosen.card.name): chosen.card for chosen in resolved.methods}
    tasks = {("task", card.name): card for card in (*resolved.tasks, *resolved.mixture)}
    for (kind, name), card in (*cards.items(), *tasks.items()):
        if card.source != BUILT_IN:
            yield Declared(kind=kind, name=name, version=card.version, file=Path(card.file))
    encoders = {card.name: card for card in resolved.encoders.values() if card.module}
    for one in encoders.values():
        yield Declared(kind="encoder", name=one.recorded, version=0, file=Path(one.path))


def _made_by_other(one: Declared, record: CellRecord) -> str:
    """The hash of another file that made the record; empty if this one did, or it is unknown."""
    spec, made_by = record.spec, record.provenance
    named = {
        "method": (spec.method, spec.method_version),
        "task": (spec.task, spec.task_version),
        "encoder": (spec.encoder, 0),
    }
    files = made_by.get("plugin_files") or {}
    if named[one.kind] != (one.name, one.version) or not files:
        return ""
    if made_by.get(one.kind, BUILT_IN) == BUILT_IN or source_hash(one.file) in files.values():
        return ""
    if code_hash(one.file) in (made_by.get("plugin_code") or {}).values():
        return ""
    return str(files.get(one.file.name) or next(iter(files.values())))


def refuse(found: Sequence[Edited], folder: Path) -> None:
    """Raise UserError for records of an edited plug-in: what changed, and what to do."""
    if found:
        raise UserError("; ".join(described(found, folder)), _remedy(found))


def described(found: Sequence[Edited], folder: Path) -> Iterator[str]:
    """A sentence for each edited file: what it declares, both hashes, how many records."""
    for file in dict.fromkeys(one.declared.file for one in found):
        here = [one for one in found if one.declared.file == file]
        what = ", ".join(f"{one.declared.kind} {one.declared.name!r}" for one in here)
        count = len({record.id for one in here for record in one.records})
        yield (
            f"{what} was edited: {file} has hash {source_hash(file)}, and {count} records in "
            f"{folder} were made by {here[-1].was}"
        )


def _remedy(found: Sequence[Edited]) -> str:
    if any(one.declared.kind == "encoder" for one in found):
        return "raise `version` in @encoder: hidden states of the old source are cached under it"
    first = found[0].declared
    return (
        "--again runs these cells again and keeps the old records in superseded/, which no table "
        f"reads; or raise version={first.version} in @{first.kind}, and both are kept"
    )


def supersede(found: Sequence[Edited], store: Store) -> int:
    """Move the records of edited plug-ins to `superseded/` of their folder; how many.

    Raises UserError for an edited encoder, whose cached hidden states would be used again, and for
    a compact folder, whose records are lines of one file.
    """
    if any(one.declared.kind == "encoder" for one in found):
        refuse(found, store.folder)
    records = {record.id: record for one in found for record in one.records}
    with exclusive(store.folder):
        for record in records.values():
            if not set_aside(record, store.folder):
                raise UserError(
                    f"{store.folder} is compact: the record of cell {record.id} is a line of a "
                    "file with others",
                    "run into another folder: --out DIR",
                )
    return len(records)
