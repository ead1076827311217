"""The list of checks: each is a function of a subject that raises if the method breaks its word."""

from collections.abc import Callable
from dataclasses import dataclass

from fusionbench.checks.subject import Subject

Body = Callable[[Subject], str | None]
"""Raises CheckFailed or CheckSkipped; what it gives back is noted with the pass."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check, with the sentence it holds a method to."""

    name: str
    body: Body
    promise: str


_checks: dict[str, Check] = {}


def check(body: Body) -> Body:
    """Add a function to the suite under its own name; its docstring's first line is the promise."""
    promise = (body.__doc__ or "").strip().splitlines()[0]
    _checks[body.__name__] = Check(name=body.__name__, body=body, promise=promise)
    return body


def checks() -> dict[str, Check]:
    """All checks by name, in the order in which they run."""
    return dict(_checks)
