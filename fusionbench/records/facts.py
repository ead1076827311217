"""JSON of a record, in full or with references to facts.

Most fields of a record repeat those of its neighbours: the budget, the cards, the provenance. Such
a group of fields is a fact. A record in normal form holds the hashes of its facts and its own
fields where they differ from the default; schema 1 has every field in every record.
"""

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from functools import lru_cache
from typing import Any, TypeVar

from fusionbench.records.cell import (
    SCHEMAS,
    Budget,
    CellRecord,
    CellSpec,
    canonical,
    checksum,
    hashed,
    json_object,
    training_from,
)
from fusionbench.records.schema import check_record

Fact = Mapping[str, Any]
"""Fields of a record and their values, as JSON has them."""
_Decoded = tuple[Fact, Fact]
"""The fields of a fact for the specification, and those for the record."""
Value = TypeVar("Value", bound=Hashable)

_GROUPS = (
    ("track", "encoder", "weights", "budget", "training"),
    ("method", "method_version", "settings", "label", "family", "control", "representative",
     "reads_answers"),
    ("task", "task_version", "data", "group", "task_family", "in_suite", "metric", "chance",
     "examples", "items"),
    ("provenance", "seed_scope", "schema"),
)  # fmt: skip
ID = re.compile(r"[0-9a-f]{20}")
_FACT = re.compile(r"[0-9a-f]{16}")
_SPEC = frozenset(CellSpec.__dataclass_fields__)
_DEFAULTS = {
    one.name: one.default if one.default_factory is MISSING else one.default_factory()
    for kind in (CellSpec, CellRecord)
    for one in fields(kind)
}
_LATER = ("scores", "left_out", "distinct", "tokens")
"""Fields of a record that schema 1 lacks."""


def fact_hash(fact: Fact) -> str:
    """16 hexadecimal digits of the SHA-256 of the fact's canonical JSON."""
    return hashlib.sha256(canonical(fact).encode()).hexdigest()[:16]


def full_text(record: CellRecord) -> str:
    """One line of JSON with every field, the id and a checksum."""
    return _line({"id": record.id} | _plain(record))


def normal_text(record: CellRecord) -> tuple[str, dict[str, Fact]]:
    """One line of JSON in normal form, and the facts that it refers to by hash."""
    own, facts = _split(_plain(record))
    return _line({"id": record.id, "facts": list(facts)} | own), facts


def check(text: str, cell: str = "") -> dict[str, Any]:
    """The values of a record's line, without its checksum.

    Raises ValueError for text that is truncated, edited, of another schema or, where `cell` is
    given, of another id.
    """
    values = json_object(text)
    claimed = values.pop("checksum", None)
    if "facts" not in values and ("spec" not in values or values.get("schema") not in SCHEMAS):
        raise ValueError("not a cell record that this version reads")
    if claimed != checksum(values):
        raise ValueError("edited: the checksum does not match the contents")
    named = values.get("id")
    if not isinstance(named, str) or not ID.fullmatch(named):
        raise ValueError(f"its id is {named!r}, not 20 hexadecimal digits")
    if cell and named != cell:
        raise ValueError(f"holds the record of another cell ({named})")
    return values


class Facts:
    """The facts of a folder, each decoded once, so that records share what they have in common."""

    def __init__(self, find: Callable[[str], Fact] | None = None) -> None:
        self._find = find
        self._decoded: dict[str, _Decoded] = {}
        self._split: dict[str, _Decoded] = {}
        self._equal: dict[Hashable, Any] = {}

    def __iter__(self) -> Iterator[str]:
        """The hashes of the facts that were found so far."""
        return iter(self._decoded)

    def require(self, name: str) -> _Decoded:
        """The fact of that hash; ValueError if it is missing, damaged or of a later schema."""
        if not isinstance(name, str) or not _FACT.fullmatch(name):
            raise ValueError(f"not the hash of a fact: {name!r}")
        if name not in self._decoded:
            try:
                fact = self._find(name) if self._find else {}
            except (OSError, KeyError) as error:
                raise ValueError(f"its facts are missing ({name}.json)") from error
            if fact_hash(fact) != name:
                raise ValueError(f"its facts were damaged or edited ({name}.json)")
            if fact.get("schema", SCHEMAS[-1]) not in SCHEMAS:
                raise ValueError(f"schema {fact['schema']!r}, this version reads {SCHEMAS[-1]}")
            try:
                self._decoded[name] = _decoded(fact)
            except (TypeError, KeyError, AttributeError) as error:
                # A field of a later version.
                raise ValueError(f"its facts cannot be read ({name}.json): {error}") from error
        return self._decoded[name]

    def read(self, text: str, cell: str = "") -> CellRecord:
        """A record in either form.

        Raises ValueError as `check` and `check_record` do, and for an id that is not the hash of
        the specification.
        """
        values = check(text, cell)
        record = self.build(values)
        check_record(record)
        if record.id != values["id"]:
            raise ValueError(f"the id {values['id']} does not match the contents ({record.id})")
        return record

    def build(self, values: Mapping[str, Any]) -> CellRecord:
        """The record of a line that was checked. Raises ValueError for unknown fields."""
        try:
            if "facts" in values:
                return self._joined(values, [self.require(name) for name in values["facts"]])
            own, facts = _split(values)
            for name, fact in facts.items():
                if name not in self._split:
                    self._split[name] = _decoded(fact)
            return self._joined(own, [self._split[name] for name in facts])
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a cell record: {error}") from error
        except RecursionError as error:
            raise ValueError("not a cell record: nested too deep") from error

    def _joined(self, values: Mapping[str, Any], facts: Iterable[_Decoded]) -> CellRecord:
        spec: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for of_spec, of_record in facts:
            spec |= of_spec
            rest |= of_record
        for name, value in values.items():
            if name in _SPEC:
                spec[name] = value
            elif name not in ("id", "facts", "checksum"):
                rest[name] = tuple(value) if isinstance(value, list) else value
        rest["taps"] = self._shared(tuple(tuple(tap) for tap in rest.get("taps", ())))
        if sizes := rest.get("parameters"):
            rest["parameters"] = self._equal.setdefault(tuple(sizes.items()), sizes)
        return CellRecord(spec=CellSpec(**spec), **rest)

    def _shared(self, value: Value) -> Value:
        shared: Value = self._equal.setdefault(value, value)
        return shared


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps({**values, "checksum": checksum(values)}, sort_keys=True)


def _plain(record: CellRecord) -> dict[str, Any]:
    values = asdict(record)
    values["spec"]["budget"] = hashed(record.spec.budget)
    if record.spec.training is None:
        # Facts of the track `probe` keep the hashes that they had without this field.
        del values["spec"]["training"]
    if record.schema == 1:
        for name in _LATER:
            del values[name]
    return values


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Fact]]:
    """A record's own fields that differ from their default, and its facts by hash."""
    flat = {**values, **values["spec"]}
    del flat["spec"]
    facts = [{name: flat.pop(name) for name in group if name in flat} for group in _GROUPS]
    own = {name: value for name, value in flat.items() if not _is_default(name, value)}
    return own, {fact_hash(fact): fact for fact in facts}


def _is_default(name: str, value: Any) -> bool:
    default = _DEFAULTS.get(name, MISSING)
    value = tuple(value) if isinstance(value, list) else value
    return type(value) is type(default) and bool(value == default)


def _decoded(fact: Fact) -> _Decoded:
    values = dict(fact)
    if "budget" in values:
        budget = dict(values["budget"])
        values["budget"] = _budget(*budget.pop("lrs"), **budget)
    if "training" in values:
        values["training"] = training_from(values["training"])
    if "settings" in values:
        values["settings"] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["settings"].items()
        }
    spec = {name: value for name, value in values.items() if name in _SPEC}
    return spec, {name: value for name, value in values.items() if name not in _SPEC}


# The conditions of a study have one budget; `typed`, since 1 and 1.0 are two identities.
@lru_cache(maxsize=256, typed=True)
def _budget(*lrs: float, **others: Any) -> Budget:
    return Budget(lrs=lrs, **others)
