"""The state of each cell that a folder's requests ask for, from the folder alone.

A plan knows more, but makes the data of all tasks; this reads `study.json`, records, failures and
claims.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fusionbench.records.cell import Budget, CellRecord
from fusionbench.records.files import content
from fusionbench.records.folder import SUPERSEDED
from fusionbench.records.history import Request
from fusionbench.records.locks import Place, claims
from fusionbench.records.store import Store

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
    encoders = {str(one.study.get("encoder")) for one in requests}
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
        return CellState(place=place, state="done", id=done[place].id)
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
    """The records of a request's condition: its track, budget and encoder."""
    study = request.study
    budget = _budget(study.get("budget"))
    return {
        (one.label or one.spec.method, one.spec.task, one.spec.seed): one
        for one in records
        if one.spec.track == study.get("track", one.spec.track)
        and (one.spec.encoder == study.get("encoder") or one.spec.encoder not in encoders)
        and (budget is None or _plain(one.spec.budget) == budget)
    }


def _budget(values: Any) -> dict[str, Any] | None:
    """A request's budget with today's fields; None where the file has none."""
    try:
        return _plain(Budget(**{**values, "lrs": tuple(values["lrs"])}))
    except (TypeError, KeyError):
        return None


def _plain(budget: Budget) -> dict[str, Any]:
    return {name: value for name, value in asdict(budget).items() if name != _OF_TASK}
