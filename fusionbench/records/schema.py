"""Types and ranges of stored values: the check that every reader and writer of records shares.

Types are those of the dataclasses' annotations. JSON has no tuple and writes 1.0 as 1 at times, so
a list passes for a tuple and an integer for a float; a boolean passes for no number.
"""

import math
import re
import types
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import Budget, CellRecord, Training

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


def check_record(record: CellRecord) -> None:
    """Raise ValueError for the first value of a record that has another type or range.

    Its id is not compared with its specification here: `Facts.read` does.
    """
    check_types(record, skip=("spec",))
    check_types(record.spec, skip=("budget", "training"))
    _check_shared(record.spec.budget, record.spec.training)
    for name, form in HASHES.items():
        value = getattr(record, name)
        if value and not form.fullmatch(value):
            raise ValueError(f"{name} is {_shown(value)}, no hash")
    spec = record.spec
    for name, value in (("seed", spec.seed), ("examples", record.examples)):
        if value < 0:
            raise ValueError(f"{name} is {value}, which is negative")
    if not 0 <= record.chance < 1:
        raise ValueError(f"chance is {record.chance:g}, not from 0 to below 1")
    _check_score(record)


def check_types(value: object, skip: tuple[str, ...] = ()) -> None:
    """Raise ValueError for the first field of a dataclass whose value has not its type."""
    values = vars(value)
    kind: Any = type(value)
    for name, passes, expected in _fields(kind):
        if name not in skip and not passes(values[name]):
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
    if outcomes is None:
        return
    if not np.isfinite(outcomes).all():
        raise ValueError("outcomes that are not finite")
    if record.source or not len(outcomes):
        return
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError(f"outcomes from {outcomes.min():g} to {outcomes.max():g}, not 0 to 1")
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
    for name, value in {"score": record.score, **record.scores}.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value:g}, not from 0 to 1")


@lru_cache(maxsize=1024, typed=True)
def _check_shared(budget: Budget, training: Training | None) -> None:
    """What the records of a condition share."""
    check_types(budget)
    if training is not None:
        check_types(training, skip=("stages",))
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
    # NumPy's float64 is a float, and a boolean an integer.
    return isinstance(value, float) or type(value) is int


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
