"""The run summary: the request in `study.json`, the report, and what the terminal shows."""

import json
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fusionbench import __version__
from fusionbench.api.errors import UserError
from fusionbench.cli.app import say
from fusionbench.records.cell import json_object, training_hash
from fusionbench.records.files import cache_dir, content, write_atomic
from fusionbench.records.folder import exclusive
from fusionbench.records.history import Request
from fusionbench.records.store import Store
from fusionbench.records.text import from_home, impersonal, markdown_page
from fusionbench.study.plan import Plan, ResolvedStudy
from fusionbench.study.study import as_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusionbench.launchers.sweep import SweepResult
    from fusionbench.report.build import ReportPaths


def note_request(store: Store, plan: Plan) -> None:
    """Add the request to `study.json`, so that a report can tell what is missing."""
    resolved = plan.resolved
    request = Request(
        study=json.loads(from_home(json.dumps(as_plain(resolved.study)))),
        labels=tuple(chosen.label for chosen in resolved.methods),
        tasks=tuple(card.name for card in resolved.tasks),
        unavailable={one.card.name: impersonal(one.reason) for one in resolved.unavailable},
        same=resolved.same,
        training=training_hash(plan.cells[0].spec.training if plan.cells else None),
        version=__version__,
    )
    with exclusive(store.folder):
        say(store.history.add(request))


LARGE = 300
"""Cells of a folder whose report takes more than a few seconds."""
SHOWN = 10
"""Methods of the leaderboard that the terminal shows besides the baseline and the user's own."""


def write(
    folder: Path,
    resolved: ResolvedStudy,
    result: "SweepResult",
    stream: TextIO,
    *,
    full: bool = False,
    hear: "Callable[[str], None]" = lambda _: None,
    cells: Collection[str] = (),
) -> None:
    """Update the report, then print its answer, the leaderboard, the gaps and the report's path.

    `full`: every method instead of the first ten, the baseline and the methods of plug-ins. `hear`
    gets a line before a report that takes long. `cells`: ids of the run's cells; where the folder
    holds others, answer and leaderboard are those of these cells alone, and one line says so.
    """
    home = folder / "report"
    began = time.monotonic()
    # Another run of the folder may end at the same moment.
    with exclusive(folder):
        written = _update(folder, home, hear)
    if written:
        note_times(result.waited, time.monotonic() - began, written)
    tables = home / "tables"
    answer, scores, more = _of_run(folder, cells) or (
        _plain(tables / "answer.md"), _plain(tables / "summary.md"), ""
    )  # fmt: skip
    if answer:
        stream.write(f"\n{answer}\n")
    if scores:
        keep = None if full else {resolved.study.baseline, *_own(resolved)}
        stream.write("\n".join(shortened(scores.splitlines(), keep)) + "\n\n")
    stream.write(more)
    _write_rest(home, resolved, result, stream)


def _write_rest(home: Path, resolved: ResolvedStudy, result: "SweepResult", stream: TextIO) -> None:
    """What is missing and why, the counts of cells, and the report's path."""
    folder, tables = home.parent, home / "tables"
    gaps = tables / "gaps.md"
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


def _of_run(folder: Path, cells: Collection[str]) -> tuple[str, str, str] | None:
    """Answer and leaderboard of some cells, and how many others the folder holds; None if none."""
    finished = Store.open(folder).finished() if cells else {}
    mine = {name: file for name, file in finished.items() if name in cells}
    if not mine or len(mine) == len(finished):
        return None
    report_writer()
    from fusionbench.report.answer import answer_page
    from fusionbench.report.build import collect
    from fusionbench.report.leaderboard import leaderboard_page

    report = collect(Store.open(folder), finished=mine)
    pages = answer_page(report).markdown, leaderboard_page(report.analyses).markdown
    answer, scores = (markdown_page(text).replace("`", "") for text in pages)
    others = len(finished) - len(mine)
    return answer, scores, f"{others:,} more cells of other runs are in the folder's report\n"


def _plain(file: Path) -> str:
    """A page without the marks of code, which a terminal does not need; empty without the file."""
    return file.read_text(encoding="utf-8").replace("`", "") if file.exists() else ""


def _own(resolved: ResolvedStudy) -> Iterator[str]:
    """Labels of the methods of plug-ins."""
    for chosen in resolved.methods:
        if chosen.card.source != "built-in":
            yield chosen.label


def shortened(lines: Sequence[str], keep: Collection[str] | None) -> Iterator[str]:
    """The lines, each table with its first rows and those of the methods in `keep`; None: all."""
    row = left = 0
    for line in lines:
        inside = line.startswith("|")
        row = row + 1 if inside else 0
        if keep is None or row <= SHOWN + 2 or _method(line) in keep:
            if left and not inside:
                yield f"{left} more: --full"
                left = 0
            yield line
        else:
            left += 1


def _method(line: str) -> str:
    """The method of a row, without the mark behind its name."""
    return line.removeprefix("|").split("|")[0].split(" (")[0].strip()


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


def _update(folder: Path, home: Path, hear: "Callable[[str], None]") -> int:
    """Write the report unless it is there; the number of cells of a report that was written."""
    from fusionbench.records.states import up_to_date

    store = Store.open(folder)
    finished = store.finished()
    say(store.problems)
    if finished or any(store.failures(finished)):
        if not up_to_date(store, home, finished):
            # What a table shows is read and hashed anew, not only looked at.
            known = set(store.problems)
            if len(finished) >= LARGE:
                hear(f"writing the report of {len(finished):,} cells")
            report_writer()(store, home, hear=lambda found: say(o for o in found if o not in known))
            return len(finished)
    return 0


def note_times(start: float, report: float, cells: int) -> None:
    """Keep in the cache how long start-up and report took here, for the next forecast."""
    values = {"start": round(start, 1), "report": round(report, 1), "cells": cells}
    # A cache that cannot be written costs a line of a forecast.
    with suppress(OSError):
        write_atomic(_times_file(), json.dumps(values).encode())


def times() -> dict[str, float]:
    """What `note_times` kept of the last run on this machine; empty without one."""
    try:
        found = json_object(content(_times_file()).decode())
        return {name: float(found[name]) for name in ("start", "report", "cells")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _times_file() -> Path:
    return cache_dir("times", "run.json")
