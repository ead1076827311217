"""Facts of two folders side by side: the study, the cells' identity, code, packages, machines."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Run

_ORIGINS = ("code", "software", "hardware")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One fact that differs; the values are text as a reader should see them."""

    what: str
    a: str
    b: str


def study_changes(a: Run | None, b: Run | None) -> list[Change]:
    """What was asked for last, key by key; empty if one folder does not say."""
    if a is None or b is None:
        return []
    one, two = (flat(run.study) | {"fusionbench": run.version} for run in (a, b))
    return changes(one, two)


def identity_changes(pairs: Iterable[tuple[CellRecord, CellRecord]]) -> list[tuple[Change, int]]:
    """What differs between cells of one name in both folders, with how many cells it concerns.

    The fields are those of the cell's identity: weights, versions, settings, data, budget.
    """
    counts: Counter[Change] = Counter()
    for one, two in pairs:
        counts.update(changes(_identity(one), _identity(two)))
    return sorted(counts.items(), key=lambda found: (-found[1], found[0].what, found[0].a))


def origin_changes(a: Sequence[CellRecord], b: Sequence[CellRecord]) -> list[Change]:
    """Code, packages, machines and plug-ins that made the cells, where the folders differ."""
    return changes(_origins(a), _origins(b), absent="nothing")


def changes(a: Mapping[str, Any], b: Mapping[str, Any], *, absent: str = "not set") -> list[Change]:
    """The keys whose values differ, sorted."""
    return [
        Change(what=key, a=shown(a.get(key), absent), b=shown(b.get(key), absent))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by points: `budget.steps`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def shown(value: object, absent: str) -> str:
    """A value in one line, cut where a hash or a list would fill the page."""
    if value is None or value == "":
        return absent
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


_WIDEST = 60


def _identity(record: CellRecord) -> dict[str, Any]:
    spec = record.spec
    facts = {
        "encoder weights": spec.weights,
        "data of the task": spec.data,
        "version of the method": spec.method_version,
        "version of the task": spec.task_version,
    }
    settings = {f"setting {key}": value for key, value in spec.settings.items()}
    return facts | settings | {f"budget.{key}": value for key, value in vars(spec.budget).items()}


def _origins(records: Sequence[CellRecord]) -> dict[str, str]:
    """Every fact with all values it has in a folder: `torch: 2.13 (12 cells), 2.14 (40 cells)`."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in _facts(record.provenance):
            counts.setdefault(key, Counter())[value] += 1
    return {key: _told(found, len(records)) for key, found in counts.items()}


def _told(found: Counter[str], cells: int) -> str:
    if len(found) == 1 and found.total() == cells:
        return next(iter(found))
    return ", ".join(f"{value} ({count} cells)" for value, count in sorted(found.items()))


def _facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in _ORIGINS:
        for key, value in provenance.get(part, {}).items():
            yield f"{part} {key}", str(value)
    for kind in ("method", "task"):
        source = str(provenance.get(kind, "built-in"))
        if source != "built-in":
            yield f"{kind}s from", source
