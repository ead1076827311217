"""What a folder holds: the state of each cell, damaged files, whether its report is current.

A plan knows more, but makes the data of all tasks; `states` reads `study.json`, records, failures
and claims. `audit` reads every file, whether a record still uses it or not. Nothing here loads
statistics, so that a run with nothing to do stays quick.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fusionbench import __version__
from fusionbench.api.errors import Problem, UserError
from fusionbench.records.archive import FAILURES
from fusionbench.records.cell import Budget, CellRecord, training_hash
from fusionbench.records.cost import profile_files
from fusionbench.records.files import content, sha256_of, write_atomic
from fusionbench.records.folder import MODELS, SUPERSEDED, Place, claims
from fusionbench.records.history import ABLATIONS, Request
from fusionbench.records.pictures import picture_files
from fusionbench.records.probes import probe_files
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


State = Literal["done", "running", "failed", "lost", "left"]
STATES: tuple[State, ...] = ("done", "running", "failed", "lost", "left")
"""`done`: it has a record, a skipped cell too. `running`: a live process has begun its job.
`failed`: its last run ended in an error. `lost`: the process that had begun its job has died.
`left`: nothing has begun it."""

_OF_TASK = "image_size"
"""The field of the budget that a task with an encoder of its own changes."""


@dataclass(frozen=True, kw_only=True)
class CellState:
    """One cell of a request."""

    place: Place
    state: State
    id: str = ""
    """Of its record or failure; empty without one."""
    why: str = ""
    """Last line of the error, or the process that holds or held the job."""
    diverged: bool = False
    """Done, but without a score: its training or its outputs were not finite."""


@dataclass(frozen=True, kw_only=True)
class RequestState:
    """A request and the state of its cells."""

    request: Request
    cells: tuple[CellState, ...]


def states(store: Store) -> list[RequestState]:
    """Each request of a folder, oldest first, with the state of its cells."""
    requests = store.history.requests()
    finished = store.finished()
    records = list(store.records(finished))
    failures = list(store.failures(finished))
    encoders = encoders_of(requests)
    taken: dict[Place, tuple[State, str]] = {
        place: ("running" if claim.held else "lost", claim.where)
        for claim in sorted(claims(store.folder), key=lambda claim: claim.held)
        for place in claim.cells
    }
    found = []
    for request in requests:
        done = of_request(request, records, encoders)
        failed = of_request(request, failures, encoders)
        cells = tuple(_state(place, done, failed, taken) for place in wanted(request))
        found.append(RequestState(request=request, cells=cells))
    return found


def superseded(store: Store) -> Counter[str]:
    """Records set aside since their plug-in was edited: how many by method and task."""
    counts: Counter[str] = Counter()
    for file in sorted((store.folder / SUPERSEDED).glob("*.json")):
        try:
            record = store.facts.read(content(file).decode())
        except (OSError, ValueError):
            # Of another kind, such as the parameters of a model.
            continue
        if record.spec.stage == "evaluate":
            counts[f"{record.label or record.spec.method} on {record.spec.task}"] += 1
    return counts


def encoders_of(requests: Iterable[Request]) -> set[str]:
    """The encoders of the studies, without those that a task brings along."""
    return {str(one.study.get("encoder")) for one in requests}


def wanted(request: Request) -> Iterator[Place]:
    """The cells that a request resolved to when it was made."""
    seeds = range(int(request.study.get("seeds", 0)))
    return ((m, t, s) for m in request.labels for t in request.tasks for s in seeds)


def _state(
    place: Place,
    done: Mapping[Place, CellRecord],
    failed: Mapping[Place, CellRecord],
    taken: Mapping[Place, tuple[State, str]],
) -> CellState:
    if place in done:
        diverged = done[place].status == "diverged"
        return CellState(place=place, state="done", id=done[place].id, diverged=diverged)
    if place in taken:
        state, where = taken[place]
        return CellState(place=place, state=state, why=where)
    if place in failed:
        lines = failed[place].reason.strip().splitlines() or ["no reason was noted"]
        return CellState(place=place, state="failed", id=failed[place].id, why=lines[-1])
    return CellState(place=place, state="left")


def of_request(
    request: Request, records: Iterable[CellRecord], encoders: set[str]
) -> dict[Place, CellRecord]:
    """The records of a request's condition: its track, budget, encoder and training.

    `encoders`: those of the folder's studies; a record with another is of a task that brings its
    own. A request of a version that noted no training takes any.
    """
    study = request.study
    budget = _budget(study.get("budget"))
    return {
        (one.label or one.spec.method, one.spec.task, one.spec.seed): one
        for one in records
        if one.spec.track == study.get("track", one.spec.track)
        and (one.spec.encoder == study.get("encoder") or one.spec.encoder not in encoders)
        and (budget is None or _plain(one.spec.budget) == budget)
        and request.training in ("", training_hash(one.spec.training))
    }


def _budget(values: Any) -> dict[str, Any] | None:
    """A request's budget with today's fields; None where the file has none."""
    try:
        return _plain(Budget(**{**values, "lrs": tuple(values["lrs"])}))
    except (TypeError, KeyError):
        return None


@lru_cache(maxsize=64)
def _plain(budget: Budget) -> dict[str, Any]:
    return {name: value for name, value in asdict(budget).items() if name != _OF_TASK}


_NOTE = ".inputs"


def up_to_date(store: Store, home: Path, finished: Mapping[str, Path] | None = None) -> bool:
    """Whether the report in `home` was made from exactly these records."""
    note = home / _NOTE
    if not note.exists():
        return False
    cells = store.finished() if finished is None else finished
    return note.read_text(encoding="utf-8") == fingerprint(store, cells)


def mark(home: Path, inputs: str) -> None:
    """Write the fingerprint of what the report was made from.

    Take it before any record is read, so that one which appears meanwhile is not missed, and write
    it last, so that an interrupted report is made again.
    """
    write_atomic(home / _NOTE, inputs.encode())


def fingerprint(store: Store, finished: Iterable[str]) -> str:
    """Hash over everything that a report shows; `finished` are the ids of the store's cells."""
    failures = [path.name for path in (store.folder / "failures").glob("*.json")]
    names = sorted([*finished, *failures])
    others = [store.history.file, store.folder / ABLATIONS, store.folder / FAILURES]
    others += [*profile_files(store.folder), *picture_files(store.folder)]
    others += probe_files(store.folder)
    problems = [str(problem) for problem in store.problems]
    text = "\n".join([__version__, *names, *problems])
    return hashlib.sha256(text.encode() + b"".join(map(_bytes, others))).hexdigest()


def _bytes(file: Path) -> bytes:
    """The contents of a file; empty for one that cannot be read, which is a problem elsewhere."""
    try:
        return content(file)
    except (OSError, ValueError):
        return b""
