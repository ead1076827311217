"""Run the suite on a method: one record per check, whatever the method does."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from fusionbench.api.errors import UserError, unknown
from fusionbench.api.types import Unsupported
from fusionbench.checks.find import Target, find
from fusionbench.checks.outcome import (
    CheckFailed,
    CheckRecord,
    CheckReport,
    CheckSkipped,
    Outcome,
)
from fusionbench.checks.subject import TRACER, Subject
from fusionbench.checks.suite import Check, checks
from fusionbench.records.cell import Setting


def check_method(
    target: Target,
    *,
    settings: Mapping[str, Setting] | None = None,
    only: Collection[str] = (),
    compiler: str = TRACER,
) -> CheckReport:
    """Run every check, or `only` some, on one method.

    `target` is a registered name (`mema-no_query`, `mema[reduction=2]`), a plug-in's file with one
    method, or a class; only a class takes `settings`. `compiler` is the backend that
    `torch.compile` is tried with. Raises UserError for a name or check that does not exist;
    whatever the method does wrong is in the report.
    """
    if settings and not isinstance(target, type):
        raise UserError("only a class takes settings", f"write {target}[key=value]")
    found = find(target)
    if len(found) != 1:
        names = ", ".join(subject.name for subject in found)
        raise UserError(f"{target} means several methods: {names}", "check them one by one")
    subject = replace(found[0], compiler=compiler)
    if settings:
        subject = replace(subject, settings=dict(settings))
    return run_checks(subject, only=only)


def run_checks(
    subject: Subject,
    *,
    only: Collection[str] = (),
    told: Callable[[CheckRecord], None] = lambda record: None,
) -> CheckReport:
    """All checks of one subject in order; `told` hears of each record as it comes."""
    records = []
    for each in chosen(only):
        records.append(run_check(each, subject))
        told(records[-1])
    return CheckReport(method=subject.name, records=tuple(records))


def run_check(each: Check, subject: Subject) -> CheckRecord:
    """One check of one subject; an expected failure that passes is not a pass."""
    started = time.process_time()
    outcome, reason = _run(each, subject)
    expected = _expected(subject).get(each.name, "")
    if expected and outcome == "failed":
        outcome, reason = "expected failure", f"{expected} ({reason})"
    elif expected and outcome == "passed":
        outcome, reason = "unexpected pass", f"declared to fail: {expected}"
    seconds = time.process_time() - started
    return CheckRecord(
        method=subject.name,
        check=each.name,
        outcome=outcome,
        reason=reason,
        seconds=round(seconds, 3),
    )


def chosen(only: Collection[str]) -> Iterator[Check]:
    """The checks of these names, in order; all where none is named. Raises UserError."""
    known = checks()
    for name in only:
        if name not in known:
            raise unknown("check", name, known)
    yield from (each for each in known.values() if not only or each.name in only)


def _run(each: Check, subject: Subject) -> tuple[Outcome, str]:
    try:
        return "passed", each.body(subject) or ""
    except CheckFailed as failure:
        return "failed", str(failure)
    except (CheckSkipped, Unsupported) as skip:
        return "skipped", str(skip)
    # A strange method may raise anything at all; it is a record, and the next check follows.
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"


def _expected(subject: Subject) -> dict[str, str]:
    """The failures it declares for these settings; none if it cannot even be built."""
    try:
        return dict(subject.build().expected_failures)
    except Exception:
        return {}
