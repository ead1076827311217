"""The stored form of records: types and ranges of values, and JSON in full or with facts.

Types are those of the dataclasses' annotations. JSON has no tuple and writes 1.0 as 1 at times, so
a list passes for a tuple and an integer for a float; a boolean passes for no number.

Most fields of a record repeat those of its neighbours: the budget, the cards, the provenance. Such
a group of fields is a fact. A record in normal form holds the hashes of its facts and its own
fields where they differ from the default; schema 1 has every field in every record.
"""

import hashlib
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache, lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import (
    SCHEMAS,
    Budget,
    CellRecord,
    CellSpec,
    Training,
    canonical,
    checksum,
    fields_of,
    hashed,
    json_object,
    training_from,
)

Check = Callable[[Any], bool]
_SHORT = 60
_NEAR = 1e-5
"""Largest difference of a score and the mean of its outcomes, which are float32."""
_UNBOUNDED = frozenset(
    {"CellRecord.loss", "CellRecord.trace", "CellRecord.measures", "CellRecord.fit"}
    | {"CellRecord.tuning", "CellRecord.provenance", "CellRecord.seconds"}
)
"""Fields that may hold a value that is not finite; no table counts with one."""
_OPTIONAL = frozenset({"CellRecord.measures", "CellRecord.scores"})
"""Mappings whose values may be null."""
HASHES = {
    "outcomes": re.compile(r"[0-9a-f]{64}"),
    "answers": re.compile(r"[0-9a-f]{64}"),
    "items": re.compile(r"[0-9a-f]{20}"),
    "model": re.compile(r"[0-9a-f]{20}"),
}
"""Fields that name a file."""


def check_record(record: CellRecord, own: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError for the first value of a record that has another type or range.

    Its id is not compared with its specification here: `Facts.read` does. `own`: the fields whose
    type is looked at, where those of the others are known to be right.
    """
    for part in (record, record.spec):
        _check_fields(type(part), fields_of(part) if own is None else own)
    shared = record.spec.budget, record.spec.training
    try:
        _check_shared(*shared)
    except TypeError:
        # A value that has no hash has another type than it should, which this says.
        _check_shared.__wrapped__(*shared)
    for name, form in HASHES.items():
        value = getattr(record, name)
        if value and not form.fullmatch(value):
            raise ValueError(f"{name} is {_shown(value)}, no hash")
    spec = record.spec
    counts = {"seed": spec.seed, "examples": record.examples, "seconds": record.seconds}
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} is {value}, which is negative")
    if not 0 <= record.chance < 1:
        raise ValueError(f"chance is {record.chance:g}, not from 0 to below 1")
    _check_score(record)


def check_types(value: object, skip: tuple[str, ...] = ()) -> None:
    """Raise ValueError for the first field of a dataclass whose value has not its type."""
    _check_fields(type(value), {name: one for name, one in vars(value).items() if name not in skip})


def _check_fields(kind: type, values: Mapping[str, Any]) -> None:
    """Raise ValueError for the first of these fields whose value has not the type of `kind`'s."""
    for name, passes, expected in _some_fields(kind, tuple(values)):
        if not passes(values[name]):
            raise ValueError(f"{name} is {_shown(values[name])}, not {expected}")


def check_outcomes(
    record: CellRecord, outcomes: Float[np.ndarray, " example"] | None, items: int | None = None
) -> None:
    """Raise ValueError for outcomes, or a number of items, that are not those of the record.

    There is one for each example, from 0 to 1, and the score is their mean; those of other tools
    are in their own units.
    """
    if outcomes is not None and len(outcomes) != record.examples:
        raise ValueError(f"{len(outcomes)} outcomes of {record.examples} examples")
    if items is not None and items != record.examples:
        raise ValueError(f"{items} items of {record.examples} examples")
    if outcomes is None or not len(outcomes):
        return
    low, high = outcomes.min(), outcomes.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("outcomes that are not finite")
    if record.source:
        return
    if low < 0 or high > 1:
        raise ValueError(f"outcomes from {low:g} to {high:g}, not 0 to 1")
    mean = float(outcomes.mean(dtype=np.float64))
    if record.score is None or abs(mean - record.score) > _NEAR:
        raise ValueError(f"its score is {record.score}, the mean of its outcomes {mean:.6g}")


def _check_score(record: CellRecord) -> None:
    done = record.status == "done"
    if not done and (record.score is not None or record.outcomes):
        raise ValueError(f"a score in a cell that is {record.status}")
    if not done or record.source:
        return
    if record.score is None:
        raise ValueError("done, but without a score")
    for name, value in (("score", record.score), *record.scores.items()):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value:g}, not from 0 to 1")


@lru_cache(maxsize=1024, typed=True)
def _check_shared(budget: Budget, training: Training | None) -> None:
    """What the records of a condition share."""
    check_types(budget)
    if training is not None:
        check_types(training)
        for stage in training.stages:
            check_types(stage)


@cache
def _fields(kind: type) -> tuple[tuple[str, Check, str], ...]:
    """Name, check and type in words of each field of a dataclass."""
    hints = get_type_hints(kind)
    found = []
    for name, hint in hints.items():
        full = f"{kind.__name__}.{name}"
        passes = _check(hint, finite=full not in _UNBOUNDED, null=full in _OPTIONAL)
        found.append((name, passes, _words(hint)))
    return tuple(found)


@lru_cache(maxsize=1024)
def _some_fields(kind: type, names: tuple[str, ...]) -> tuple[tuple[str, Check, str], ...]:
    """Those of `_fields` with one of these names; a folder's records have few sets of names."""
    return tuple(one for one in _fields(kind) if one[0] in names)


def _check(hint: Any, *, finite: bool = True, null: bool = False) -> Check:
    """A function that is true for values of a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if origin in (Union, types.UnionType):
        parts = [_check(one, finite=finite) for one in arguments]
        return lambda value: any(part(value) for part in parts)
    if origin is Literal:
        allowed = {type(one): set(arguments) for one in arguments}
        return lambda value: value in allowed.get(type(value), ())
    if origin in (tuple, list):
        return _sequence(arguments, finite=finite)
    if origin is not None and issubclass(origin, Mapping):
        inner = _check(arguments[1], finite=finite)
        return lambda value: (
            isinstance(value, dict)
            and all(
                type(key) is str and ((null and one is None) or inner(one))
                for key, one in value.items()
            )
        )
    if hint is float:
        return _is_finite if finite else _is_number
    return lambda value: type(value) is hint


def _is_number(value: object) -> bool:
    # NumPy's float64 is a float, a boolean an integer, and some integers are too large for a float.
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _sequence(arguments: tuple[Any, ...], *, finite: bool) -> Check:
    """Tuples of any length; JSON has lists in their place."""
    inner = _check(arguments[0], finite=finite)
    return lambda value: type(value) in (tuple, list) and all(map(inner, value))


def _words(hint: Any) -> str:
    return getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."


Fact = Mapping[str, Any]
"""Fields of a record and their values, as JSON has them."""
_Decoded = tuple[Fact, Fact]
"""The fields of a fact for the specification, and those for the record."""

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


def check(text: str, cell: str = "", *, passed: bool = False) -> dict[str, Any]:
    """The values of a record's line, without its checksum.

    Raises ValueError for text that is truncated, edited, of another schema or, where `cell` is
    given, of another id. `passed`: this text has passed before, so its checksum is not compared.
    """
    values = json_object(text)
    claimed = values.pop("checksum", None)
    full = "facts" not in values
    if (full and "spec" not in values) or (
        (full or "schema" in values) and values.get("schema") not in SCHEMAS
    ):
        raise ValueError("not a cell record that this version reads")
    if not passed and claimed != checksum(values):
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
        self._equal: dict[tuple[str, str], Any] = {}

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
                decoded = _decoded(fact)
            except (TypeError, KeyError, AttributeError) as error:
                # A field of a later version.
                raise ValueError(f"its facts cannot be read ({name}.json): {error}") from error
            _check_fields(CellSpec, decoded[0])
            _check_fields(CellRecord, decoded[1])
            self._decoded[name] = decoded
        return self._decoded[name]

    def read(self, text: str, cell: str = "") -> CellRecord:
        """A record in either form.

        Raises ValueError as `check` and `check_record` do, and for an id that is not the hash of
        the specification.
        """
        values = check(text, cell)
        record = self.build(values)
        # The types of facts were looked at when they were found.
        check_record(record, own=values if "facts" in values else None)
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
        rest["taps"] = tuple(tuple(tap) for tap in rest.get("taps", ()))
        for name in ("taps", "parameters"):
            if value := rest.get(name):
                # By text: 10 and 10.0 are equal, and only one of them is a number of parameters.
                rest[name] = self._equal.setdefault((name, repr(value)), value)
        return CellRecord(spec=CellSpec(**spec), **rest)


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
