"""Recorded cells that run again: as studies, compared with the first run, or set aside.

Records of an edited plug-in are set aside. A record holds the hash of each plug-in file that made
it. Built-in methods and tasks change under their `version`, which is part of a cell's id, so that
their old records do not count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from fusionbench.api.errors import UserError
from fusionbench.records.cell import CellRecord
from fusionbench.records.folder import exclusive, set_aside
from fusionbench.records.states import encoders_of, of_request, wanted
from fusionbench.records.store import Store
from fusionbench.registry.discovery import BUILT_IN
from fusionbench.registry.provenance import code_hash, source_hash
from fusionbench.study.plan import ResolvedStudy
from fusionbench.study.reading import from_plain, without_zeros
from fusionbench.study.study import PRESETS, PROBE, Study, as_plain

SCORE_TOLERANCE = 0.02
"""Largest difference of the scores of two machines: rounding moves answers that were close."""
LOSS_TOLERANCE = 1e-3
"""Largest relative difference of the training loss at its first and last step in float32."""
_LOOSE = 20.0
"""The same in bfloat16 is so many times larger."""


def studies_of(store: Store, records: Sequence[CellRecord]) -> list[tuple[Study, list[CellRecord]]]:
    """Studies whose cells include these records, each with its records.

    Raises UserError for a record of the track `vlm` that no request of the folder names: what its
    model was trained on stands in the request alone.
    """
    found: dict[str, tuple[Study, list[CellRecord]]] = {}
    requests = [(one, set(wanted(one))) for one in reversed(store.history.requests())]
    encoders = encoders_of(one for one, _ in requests)
    for record in records:
        place = (record.label or record.spec.method, record.spec.task, record.spec.seed)
        study = next(
            (
                from_plain(request.study)
                for request, places in requests
                if place in places and place in of_request(request, [record], encoders)
            ),
            None,
        )
        study = study or _alone(record)
        found.setdefault(repr(as_plain(study)), (study, []))[1].append(record)
    return [(narrowed(study, group), group) for study, group in found.values()]


def narrowed(study: Study, records: Sequence[CellRecord]) -> Study:
    """The study with the methods, tasks and seeds of these records."""
    return replace(
        study,
        methods=tuple(dict.fromkeys(one.label or one.spec.method for one in records)),
        tasks=tuple(dict.fromkeys(one.spec.task for one in records)),
        seeds=max(one.spec.seed for one in records) + 1,
        # A label holds all changed settings.
        settings={},
        contrasts=(),
        references=False,
    )


def _alone(record: CellRecord) -> Study:
    spec = record.spec
    if spec.track != PROBE or record.source:
        where = f"imported from {record.source}" if record.source else f"of the track {spec.track}"
        raise UserError(
            f"cell {record.id} is {where}, and no request of the folder names it",
            "name the folder that it was run in",
        )
    return Study(name="again", encoder=spec.encoder, budget=spec.budget)


def study_text(study: Study) -> str:
    """The study as the text of a file that `run` takes."""
    start = as_plain(PRESETS[study.track]["quick"])
    plain = as_plain(study)
    values: dict[str, Any] = {"preset": "quick", "track": study.track, "name": study.name}
    values |= _changes(plain, start)
    budget = without_zeros(plain["budget"], plain["training"])
    values["budget"] = _changes(budget, start["budget"])
    # A file declares its own contrasts, those of the preset too.
    values["contrasts"] = plain["contrasts"]
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def _changes(values: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != start[name]}


def differences(
    first: CellRecord,
    second: CellRecord,
    outcomes: tuple[Float[np.ndarray, " example"], Float[np.ndarray, " example"]],
    *,
    exact: bool,
) -> list[str]:
    """What two runs of a cell differ in; empty where they agree.

    `exact`: every outcome and the losses must be equal, as on one processor with one software.
    Else score and losses may differ by the tolerances above.
    """
    found = []
    if first.status != second.status:
        return [f"status {first.status}, now {second.status}"]
    if exact:
        changed = int((outcomes[0] != outcomes[1]).sum()) if _same_length(outcomes) else -1
        found += [f"{changed} of {len(outcomes[0])} outcomes"] if changed else []
        found += ["training loss"] if first.loss != second.loss else []
        return found
    scores = (first.score or 0.0, second.score or 0.0)
    if abs(scores[0] - scores[1]) > SCORE_TOLERANCE or not _same_length(outcomes):
        found.append(f"score {scores[0]:.4f}, now {scores[1]:.4f}")
    most = LOSS_TOLERANCE * (_LOOSE if first.spec.budget.precision == "bf16" else 1.0)
    for name, at in (("first", 0), ("last", -1)):
        if first.loss and second.loss:
            one, two = first.loss[at], second.loss[at]
            if not abs(one - two) <= most * max(abs(one), abs(two), 1e-12):
                found.append(f"{name} loss {one:.6g}, now {two:.6g}")
    return found


def _same_length(outcomes: tuple[np.ndarray, np.ndarray]) -> bool:
    return len(outcomes[0]) == len(outcomes[1])


def same_machine(first: CellRecord, second: CellRecord) -> bool:
    """Whether two records come from one kind of processor, without a GPU, and one software."""
    one, two = first.provenance, second.provenance
    hardware = one.get("hardware", {}), two.get("hardware", {})
    return (
        hardware[0] == hardware[1]
        and hardware[0].get("device") == "cpu"
        and one.get("software") == two.get("software")
    )


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
