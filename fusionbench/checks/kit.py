"""Checks as functions of a subject, their records, and comparisons of outputs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fusionbench.checks.toy import Outputs, Subject

Outcome = Literal["passed", "failed", "skipped", "expected failure", "unexpected pass"]
OUTCOMES: tuple[Outcome, ...] = (
    "passed",
    "failed",
    "skipped",
    "expected failure",
    "unexpected pass",
)
UNEXPECTED: tuple[Outcome, ...] = ("failed", "unexpected pass")
"""Outcomes that the method's author must fix."""


class CheckFailed(Exception):
    """The method breaks the rule of this check; the message describes how."""


class CheckSkipped(Exception):
    """The check does not apply to this method or machine; the message gives the reason."""


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
        """Whether it is an undeclared failure or a declared one that passes."""
        return self.outcome in UNEXPECTED


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All checks of one method, in the order of the suite."""

    method: str
    records: tuple[CheckRecord, ...]

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """Number of records of each outcome, zeros included."""
        found = Counter(record.outcome for record in self.records)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def unexpected(self) -> tuple[CheckRecord, ...]:
        """Undeclared failures and unexpected passes."""
        return tuple(record for record in self.records if record.unexpected)

    def __str__(self) -> str:
        """`scalar_mix: 27 passed, 1 skipped`, then a line for each unexpected record."""
        return "\n".join(
            [f"{self.method}: {counts_text(self.counts)}"]
            + [f"  {record.check}: {record.outcome}: {record.reason}" for record in self.unexpected]
        )


def counts_text(counts: Mapping[Outcome, int]) -> str:
    """`27 passed, 1 skipped`: outcomes that occur."""
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def total(reports: Sequence[CheckReport]) -> Mapping[Outcome, int]:
    """The counts of several reports together."""
    return {outcome: sum(each.counts[outcome] for each in reports) for outcome in OUTCOMES}


TOLERANCE = 1e-4
"""Relative to the largest entry; float32 sums in another order differ by about 1e-6."""
ROUNDING = 1e-6
"""For the same sums computed twice."""


def expect_equal(left: Outputs, right: Outputs, what: str, *, tolerance: float = TOLERANCE) -> None:
    """Raise CheckFailed unless all outputs agree; `what` names the comparison."""
    if left.keys() != right.keys():
        raise CheckFailed(f"{what}: gives {', '.join(left)} or {', '.join(right)}")
    for name, values in left.items():
        expect_close(values, right[name], f"{what}: {name}", tolerance=tolerance)


def expect_close(
    left: Float[Tensor, "*shape"],
    right: Float[Tensor, "*shape"],
    what: str,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise CheckFailed unless two tensors agree."""
    if left.shape != right.shape:
        raise CheckFailed(f"{what}: {list(left.shape)} against {list(right.shape)}")
    apart = distance(left, right)
    if not apart <= tolerance:
        raise CheckFailed(f"{what}: differ by {apart:.2g} of the largest value")


def differ(left: Outputs, right: Outputs, *, tolerance: float = TOLERANCE) -> bool:
    """Whether any output differs."""
    try:
        expect_equal(left, right, "", tolerance=tolerance)
    except CheckFailed:
        return True
    return False


def distance(left: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> float:
    """Largest difference, relative to the largest entry; NaN where either has one."""
    if not left.numel():
        return 0.0
    left, right = left.detach().double(), right.detach().double()
    scale = torch.maximum(left.abs().amax(), right.abs().amax()).clamp_min(1e-12)
    return float((left - right).abs().amax() / scale)


Body = Callable[[Subject], str | None]
"""Raises CheckFailed or CheckSkipped; a returned text is the reason of the pass."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check and its rule in one sentence."""

    name: str
    body: Body
    promise: str


_checks: dict[str, Check] = {}


def check(body: Body) -> Body:
    """Register a function as a check; the first line of its docstring is the rule."""
    promise = (body.__doc__ or "").strip().splitlines()[0]
    _checks[body.__name__] = Check(name=body.__name__, body=body, promise=promise)
    return body


def checks() -> dict[str, Check]:
    """All checks by name, in the order in which they run."""
    return dict(_checks)
