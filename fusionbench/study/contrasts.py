"""Planned contrasts: which comparisons a study declares before it runs. Standard library only.

In a study file:

    contrasts:
      - {method: mema}                                  the study's baseline, mema's own control
      - {method: dense_connector-dci, over: fine}       over one group of tasks
      - {method: dia_lstm, baseline: last, control: repeat}
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionbench.api.errors import UserError, did_you_mean, unknown

MOST_PLANNED = 12
"""A family corrected for more than this finds nothing (a test keeps it equal to `stats`')."""
SUITE = "suite"
_KEYS = ("name", "method", "baseline", "control", "over")
_MARGINS = ("suite", "task")


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One method against the baseline and its matched control, over the suite or one group."""

    method: str
    baseline: str
    control: str = ""
    """Empty: the one that the method's card names."""
    over: str = SUITE
    """`suite`, or the name of a group of tasks."""
    name: str = ""


def read_contrasts(
    values: Sequence[Mapping[str, Any]], baseline: str, where: str = ""
) -> tuple[Contrast, ...]:
    """Contrasts as a study states them. Raises UserError for what is none, and above 12.

    `where` (`study.yaml, line 3: `) is put before each message.
    """
    if len(values) > MOST_PLANNED:
        raise UserError(
            f"{where}contrasts: at most {MOST_PLANNED} can be planned, got {len(values)}",
            "the others appear as exploratory all the same",
        )
    named = [(f"{where}contrasts[{number}]", value) for number, value in enumerate(values, 1)]
    contrasts = tuple(_read(what, value, baseline) for what, value in named)
    for index, one in enumerate(contrasts):
        if one in contrasts[:index]:
            said = f"{where}contrasts: {one.method} comes twice"
            raise UserError(said, "each question is asked once")
    return contrasts


def check_margins(margins: Mapping[str, float], where: str = "") -> None:
    """Raise UserError unless the margins are positive and of a level that exists."""
    for key, value in margins.items():
        if key not in _MARGINS:
            near = did_you_mean(key, _MARGINS)
            raise UserError(f"{where}margins: unknown key {key!r}{near}", "known: suite, task")
        if not value > 0:
            said = f"{where}margins.{key} must be positive, got {value}"
            raise UserError(said, "in points, like 1.0")


def check_known(
    contrasts: Sequence[Contrast], methods: Collection[str], groups: Collection[str]
) -> None:
    """Raise UserError for a contrast that names a method or a group which does not exist."""
    for one in contrasts:
        if one.over not in (SUITE, *groups):
            raise unknown("group of tasks", one.over, (SUITE, *sorted(groups)))
        for name in (one.method, one.baseline, one.control):
            if name and name not in methods:
                raise unknown("method", name, methods, "`fusionbench list methods` shows all")


def _read(what: str, value: Mapping[str, Any], baseline: str) -> Contrast:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} must hold keys, got {value!r}", "for example {method: mema}")
    for key, text in value.items():
        if key not in _KEYS:
            near = did_you_mean(str(key), _KEYS)
            raise UserError(f"{what}: unknown key {key!r}{near}", f"known: {', '.join(_KEYS)}")
        if not isinstance(text, str) or not text:
            raise UserError(f"{what}.{key} must be a name, got {text!r}", "for example mema")
    if "method" not in value:
        raise UserError(f"{what} names no method", "for example {method: mema}")
    contrast = Contrast(**{"baseline": baseline, **value})
    if contrast.method in (contrast.baseline, contrast.control):
        raise UserError(f"{what}: {contrast.method} is compared with itself", "name another method")
    return contrast
