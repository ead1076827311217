"""Find methods, run the checks on them, and write the report."""

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
    counts_text,
    total,
)
from fusionbench.checks.toy import TRACER, Subject
from fusionbench.records.cell import Setting
from fusionbench.registry.catalog import Catalog, MethodCard, read_catalog, require_usable
from fusionbench.registry.plugins import load_method
from fusionbench.registry.selection import Chosen, select_methods

Target = str | Path | type[Method]


def find(
    target: Target, *, plugins: Sequence[str] = (), required: bool = True
) -> tuple[Subject, ...]:
    """The methods of a name, `name[key=value]`, glob, `all`, file, folder or class.

    `all` includes methods that a study's `all` leaves out. Raises UserError if nothing matches,
    unless none is `required`.
    """
    if isinstance(target, type):
        return (Subject(name=target.__name__, cls=target),)
    text = str(target)
    is_path = text.endswith(".py") or (Path(text).is_dir() and "/" in text)
    given = [*plugins, text] if is_path else [*plugins]
    catalog = read_catalog(given)
    require_usable(catalog, given)
    names = [text]
    if is_path:
        names = [card.name for card in _in(text, catalog, required=required)]
    elif text == "all":
        names = list(catalog.methods)
    return tuple(map(_subject, select_methods(catalog, names)))


def _in(path: str, catalog: Catalog, *, required: bool) -> list[MethodCard]:
    """The methods that a file or folder declares. Raises UserError for none, if `required`."""
    place = Path(path).resolve()
    found = [c for c in catalog.methods.values() if Path(c.file).resolve().is_relative_to(place)]
    if not found and required:
        said = [problem.message for problem in catalog.problems if str(place) in problem.source]
        raise UserError(f"no method in {path}", "; ".join(said))
    return found


def _subject(chosen: Chosen) -> Subject:
    card = chosen.card
    return Subject(
        name=chosen.label, cls=load_method(card), settings=dict(chosen.settings), facts=card.facts
    )


def check_method(
    target: Target,
    *,
    settings: Mapping[str, Setting] | None = None,
    only: Collection[str] = (),
    compiler: str = TRACER,
) -> CheckReport:
    """Run every check, or `only` some, on one method.

    `target` is a name (`mema-no_query`, `mema[reduction=2]`), a plug-in's file with one method, or
    a class; only a class takes `settings`. `compiler` is the backend of `torch.compile`. Raises
    UserError for an unknown name or check; errors of the method are in the report.
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
) -> CheckReport:
    """Run all checks of one subject, or `only` some, in order."""
    records = tuple(run_check(each, subject) for each in chosen(only))
    return CheckReport(method=subject.name, records=records)


def run_check(each: Check, subject: Subject) -> CheckRecord:
    """Run one check; a declared failure that passes is an unexpected pass."""
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
    """The checks of these names, or all, in order. Raises UserError for an unknown name."""
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
    # A method may raise anything; the error becomes a record and the next check runs.
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"


def _expected(subject: Subject) -> dict[str, str]:
    """Declared failures for these settings; none if the method cannot be built."""
    try:
        return dict(subject.build().expected_failures)
    except Exception:
        return {}


def each_check(
    *targets: Target, only: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Parametrize a pytest function's argument `verdict` over methods and checks.

    Calling `verdict()` passes, skips, fails, or xfails with the method's reason; an unexpected pass
    fails. Raises UserError for an unknown target or check.
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
    """The reports as a Markdown page; equal reports give equal bytes."""
    records = [record for report in reports for record in report.records]
    parts = [
        "# Conformance of methods",
        f"{len(reports)} methods, {len(records)} checks: {counts_text(total(reports))}.",
        f"Python {platform.python_version()}, torch {version('torch')}.",
        "## Unexpected",
        _reasons(record for record in records if record.unexpected) or "None.",
        "## Expected failures",
        _reasons(r for r in records if r.outcome == "expected failure") or "None.",
        "## Counts",
        _table([("method", *OUTCOMES), *(_counts(report) for report in reports)]),
        "## Skipped",
        _skipped(records) or "None.",
        "## Rules",
        _table([("check", "rule"), *((c.name, c.promise) for c in checks().values())]),
    ]
    return "\n\n".join(parts) + "\n"


def _counts(report: CheckReport) -> tuple[str, ...]:
    counts: Mapping[Outcome, int] = report.counts
    return (report.method, *(str(counts[outcome]) for outcome in OUTCOMES))


def _reasons(records: Iterable[CheckRecord]) -> str:
    rows = [(r.method, r.check, r.outcome, r.reason) for r in records]
    return _table([("method", "check", "outcome", "reason"), *rows]) if rows else ""


def _skipped(records: Iterable[CheckRecord]) -> str:
    """One row per check and reason."""
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
