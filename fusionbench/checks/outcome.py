"""What a check leaves behind: one record each, and their counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["passed", "failed", "skipped", "expected failure", "unexpected pass"]
OUTCOMES: tuple[Outcome, ...] = (
    "passed",
    "failed",
    "skipped",
    "expected failure",
    "unexpected pass",
)
UNEXPECTED: tuple[Outcome, ...] = ("failed", "unexpected pass")
"""What a method's author has to act on."""


class CheckFailed(Exception):
    """The method breaks what this check holds it to; the message says how."""


class CheckSkipped(Exception):
    """The check says nothing about this method or machine; the message says why."""


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """One check of one method."""

    method: str
    check: str
    outcome: Outcome
    reason: str = ""
    """Why it failed or was skipped; of an expected failure, the method's own
    reason, then what was found."""
    seconds: float = 0.0
    """CPU time."""

    @property
    def unexpected(self) -> bool:
        """A failure that nobody has declared, or a declared one that passes."""
        return self.outcome in UNEXPECTED


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All checks of one method, in the order of the suite."""

    method: str
    records: tuple[CheckRecord, ...]

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many records have each outcome, zeros included: a green report says how many ran."""
        found = Counter(record.outcome for record in self.records)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def unexpected(self) -> tuple[CheckRecord, ...]:
        """What is wrong; empty if the method keeps its word."""
        return tuple(record for record in self.records if record.unexpected)

    def __str__(self) -> str:
        """`scalar_mix: 27 passed, 1 skipped`, then a line for each unexpected record."""
        return "\n".join(
            [f"{self.method}: {said(self.counts)}"]
            + [f"  {record.check}: {record.outcome}: {record.reason}" for record in self.unexpected]
        )


def said(counts: Mapping[Outcome, int]) -> str:
    """`27 passed, 1 skipped`: the outcomes that occur."""
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def total(reports: Sequence[CheckReport]) -> Mapping[Outcome, int]:
    """The counts of several reports together."""
    return {outcome: sum(each.counts[outcome] for each in reports) for outcome in OUTCOMES}
