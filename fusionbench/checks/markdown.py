"""Reports as one Markdown page: counts, what is unexpected, what is expected, what was skipped."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

from tabulate import tabulate

from fusionbench.checks.outcome import (
    OUTCOMES,
    CheckRecord,
    CheckReport,
    Outcome,
    said,
    total,
)
from fusionbench.checks.suite import checks


def page(reports: Sequence[CheckReport]) -> str:
    """The whole page; the same reports give the same bytes."""
    records = [record for report in reports for record in report.records]
    parts = [
        "# Conformance of methods",
        f"{len(reports)} methods, {len(records)} checks: {said(total(reports))}.",
        f"Python {platform.python_version()}, torch {version('torch')}.",
        "## Unexpected",
        _reasons(record for record in records if record.unexpected)
        or "Nothing: every method keeps its promises.",
        "## Expected failures",
        _reasons(r for r in records if r.outcome == "expected failure") or "None.",
        "## Counts",
        _table([("method", *OUTCOMES), *(_counts(report) for report in reports)]),
        "## Skipped",
        _skipped(records) or "Nothing.",
        "## What the checks hold a method to",
        _table([("check", "promise"), *((c.name, c.promise) for c in checks().values())]),
    ]
    return "\n\n".join(parts) + "\n"


def _counts(report: CheckReport) -> tuple[str, ...]:
    counts: Mapping[Outcome, int] = report.counts
    return (report.method, *(str(counts[outcome]) for outcome in OUTCOMES))


def _reasons(records: Iterable[CheckRecord]) -> str:
    rows = [(r.method, r.check, r.outcome, r.reason) for r in records]
    return _table([("method", "check", "outcome", "reason"), *rows]) if rows else ""


def _skipped(records: Iterable[CheckRecord]) -> str:
    """One row per check and reason: most skips are alike."""
    methods: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.outcome == "skipped":
            methods.setdefault((record.check, record.reason), []).append(record.method)
    rows = [(check, reason, _listed(names)) for (check, reason), names in methods.items()]
    return _table([("check", "reason", "methods"), *rows]) if rows else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{len(names)} methods"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """The first row is the header."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return tabulate(cells[1:], headers=cells[0], tablefmt="github", disable_numparse=True)
