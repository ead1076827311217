"""Reports as one Markdown page: counts, what is unexpected, what is expected, what was skipped."""

import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fusionbench.api.errors import UserError, unknown
from fusionbench.api.fusion import Method
from fusionbench.api.types import Unsupported
from fusionbench.checks.kit import (
    OUTCOMES,
    Check,
    CheckFailed,
    CheckRecord,
    CheckReport,
    CheckSkipped,
    Outcome,
    checks,
    said,
    total,
)
from fusionbench.checks.toy import TRACER, Subject
from fusionbench.records.cell import Setting
from fusionbench.registry.catalog import Catalog, MethodCard, read_catalog
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import Chosen, select_methods

# From a name, a glob, `all`, a path or a class to the methods that are meant.


Target = str | Path | type[Method]


def find(target: Target, *, plugins: Sequence[str] = ()) -> tuple[Subject, ...]:
    """The methods meant: a name, `name[key=value]`, a glob, `all`, a file, a folder, or a class.

    `all` means every registered name, also those that a study's `all` leaves out. Raises UserError
    for a target that names nothing.
    """
    if isinstance(target, type):
        return (Subject(name=target.__name__, cls=target),)
    text = str(target)
    is_path = text.endswith(".py") or (Path(text).is_dir() and "/" in text)
    catalog = read_catalog([*plugins, text] if is_path else plugins)
    names = [text]
    if is_path:
        names = [card.name for card in _in(text, catalog)]
    elif text == "all":
        names = list(catalog.methods)
    return tuple(map(_subject, select_methods(catalog, names)))


def _in(path: str, catalog: Catalog) -> list[MethodCard]:
    """The methods that a file or folder declares."""
    place = Path(path).resolve()
    found = [c for c in catalog.methods.values() if Path(c.file).resolve().is_relative_to(place)]
    if not found:
        said = [problem.message for problem in catalog.problems if str(place) in problem.source]
        raise UserError(f"no method in {path}", "; ".join(said))
    return found


def _subject(chosen: Chosen) -> Subject:
    card = chosen.card
    return Subject(
        name=chosen.label, cls=load_method(card), settings=dict(chosen.settings), facts=card.facts
    )


# Run the suite on a method: one record per check, whatever the method does.


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


# For a method's own tests: one pytest item per check.
#
# from fusionbench.checks import each_check
#
# @each_check("my_method.py")
# def test_my_method_keeps_its_promises(verdict):
#     verdict()


def each_check(
    *targets: Target, only: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Parametrize a test's `verdict` over methods and checks.

    Called, a verdict passes, skips, xfails with the method's reason, or fails; an expected failure
    that passes fails. Raises UserError for an unknown target or check.
    """
    import pytest

    found = [
        (subject, each) for target in targets for subject in find(target) for each in chosen(only)
    ]
    items = [
        pytest.param(_verdict(subject, each), id=f"{subject.name}-{each.name}")
        for subject, each in found
    ]
    return pytest.mark.parametrize("verdict", items)


def _verdict(subject: Subject, each: Check) -> Callable[[], None]:
    def verdict() -> None:
        import pytest

        record = run_check(each, subject)
        if record.unexpected:
            pytest.fail(f"{each.promise}\n{record.reason}", pytrace=False)
        if record.outcome == "skipped":
            pytest.skip(record.reason)
        if record.outcome == "expected failure":
            pytest.xfail(record.reason)

    return verdict


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
