"""The run summary: the request in `study.json`, the report, and what the terminal shows."""

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fusionbench import __version__
from fusionbench.api.errors import UserError
from fusionbench.cli.app import say
from fusionbench.records.history import Request
from fusionbench.records.locks import exclusive
from fusionbench.records.store import Store
from fusionbench.study.plan import ResolvedStudy
from fusionbench.study.study import as_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusionbench.launchers.sweep import SweepResult
    from fusionbench.report.build import ReportPaths


def note_request(store: Store, resolved: ResolvedStudy) -> None:
    """Add the request to `study.json`, so that a report can tell what is missing."""
    request = Request(
        study=as_plain(resolved.study),
        labels=tuple(chosen.label for chosen in resolved.methods),
        tasks=tuple(card.name for card in resolved.tasks),
        unavailable={one.card.name: one.reason for one in resolved.unavailable},
        same=resolved.same,
        version=__version__,
    )
    with exclusive(store.folder):
        say(store.history.add(request))


def write(folder: Path, resolved: ResolvedStudy, result: "SweepResult", stream: TextIO) -> None:
    """Update the report, then print its table, the gaps, the counts and the report's path."""
    home = folder / "report"
    # Another run of the folder may end at the same moment.
    with exclusive(folder):
        _update(folder, home)
    scores, gaps = home / "tables" / "summary.md", home / "tables" / "gaps.md"
    if scores.exists():
        text = scores.read_text(encoding="utf-8")
        stream.write(f"\nMean ± half of the 95 % interval over runs, in percent\n\n{text}\n")
    if gaps.exists():
        stream.write(gaps.read_text(encoding="utf-8"))
    for one in resolved.unavailable:
        stream.write(f"- left out: {one.card.name}: {one.reason}\n")
    counts = f"{result.executed} cells run, {result.finished} were there"
    failed = f", {result.failed} failed (see {folder / 'failures'})" if result.failed else ""
    stream.write(f"{counts}{failed}\n")
    # A run that was interrupted early leaves nothing to report.
    for page in (home / "report.html", home / "report.md"):
        if page.exists():
            stream.write(f"report: {page}\n")
            break


def report_writer() -> "Callable[..., ReportPaths]":
    """`write_report`; UserError if this machine lacks a package that only reports need."""
    try:
        from fusionbench.report.build import write_report
    except ModuleNotFoundError as error:
        raise UserError(
            f"the report needs the package {error.name}, which is not installed",
            f"pip install {error.name}, then `fusionbench report DIR`; the records are safe",
        ) from error
    return write_report


def _update(folder: Path, home: Path) -> None:
    from fusionbench.report.freshness import up_to_date

    store = Store.open(folder)
    finished = store.finished()
    say(store.problems)
    if finished or any(store.failures(finished)):
        if not up_to_date(store, home, finished):
            # What a table shows is read and hashed anew, not only looked at.
            known = set(store.problems)
            report_writer()(store, home, hear=lambda found: say(o for o in found if o not in known))
