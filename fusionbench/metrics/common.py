"""Means, groups and input checks that several metrics share."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from fusionbench.api.errors import UserError

Measures = dict[str, float | int | None]
"""Readings by name; `name/group` for a part of the questions, None where a value is undefined."""

Value = TypeVar("Value")


def mean(values: Iterable[float]) -> float | None:
    """Mean, or None of no values."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None


def percent(values: Sequence[float]) -> float:
    """Mean in percent, rounded to two decimals as the official VQA script prints it."""
    return round(100 * float(sum(values)) / len(values), 2)


def grouped(names: Iterable[str], values: Iterable[Value]) -> dict[str, list[Value]]:
    """Values of each name, in order of the first appearance."""
    found: dict[str, list[Value]] = {}
    for name, value in zip(names, values, strict=True):
        found.setdefault(name, []).append(value)
    return found


def means(reading: str, names: Iterable[str], values: Iterable[float]) -> Measures:
    """`reading/name` -> mean of the values of that name; values without a name are left out."""
    groups = grouped(names, values)
    return {f"{reading}/{name}": mean(group) for name, group in groups.items() if name}


def answered(answers: Sequence[Value]) -> Sequence[Value]:
    """The answers. Raises UserError if there is none."""
    if not answers:
        raise UserError("there are no answers to measure", "evaluate at least one question")
    return answers


def letters(count: int) -> str:
    """The letters of `count` options: "ABCD" for four. Raises UserError for more than 26."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    if not 0 <= count <= len(alphabet):
        raise UserError(f"{count} options", f"at most {len(alphabet)} options have a letter")
    return alphabet[:count]
