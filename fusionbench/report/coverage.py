"""`tables/coverage`: what ran, what did not and why, and where the records come from."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fusionbench.records.cell import CellRecord, Status
from fusionbench.records.history import Request
from fusionbench.records.scores import ScoreTable
from fusionbench.records.text import file_only, one_line
from fusionbench.report.alike import dead
from fusionbench.report.analysis import Analysis
from fusionbench.report.page import Material, Page
from fusionbench.report.tables import Row, conditions, latex_grid, markdown

_STATES: tuple[Status, ...] = ("done", "skipped", "diverged", "failed")


def coverage_page(report: Material) -> Page:
    """Cells by status, reasons, warnings of the training, and the records' origins."""
    records, planned = report.results.records, report.planned
    status = status_rows(records, planned)
    outlying = [line for one in report.analyses for line in _outlying(one)]
    blind = [line for table in report.results.tables for line in dead(report.results, table)]
    parts = [markdown(status)]
    for heading, lines in (
        ("Skipped and failed", reasons(records)),
        ("Tasks left out", left_out(planned)),
        ("Worth knowing", [*blind, *warnings(records), *outlying]),
        ("Files that were ignored", [f"- {one_line(problem)}" for problem in report.problems]),
        ("Origins", origins(records)),
    ):
        if lines:
            parts.append(f"### {heading}\n\n" + "\n".join(lines) + "\n")
    tables = report.results.tables
    return Page(
        markdown="\n".join(parts),
        rows=[row for table in tables for row in coverage_rows(table, planned, states(records))],
        latex=latex_grid(status, "What ran", "coverage"),
    )


def _outlying(analysis: Analysis) -> Iterator[str]:
    """A line for each cell with a run far from the others, since such a run shifts its mean."""
    table = analysis.table
    for (method, task), seeds in analysis.outlying.items():
        scores = ", ".join(f"{100 * value:.1f}" for value in table.values[method, task])
        which = ", ".join(map(str, seeds))
        yield (
            f"- {table.methods[method]} on {table.tasks[task].name}: seed {which} is more than "
            f"5 MAD from the median; all runs: {scores}"
        )


def states(records: Iterable[CellRecord]) -> tuple[Status, ...]:
    """The columns of counts; `diverged` where a training has."""
    diverged = any(record.status == "diverged" for record in records)
    return tuple(one for one in _STATES if one != "diverged" or diverged)


def status_rows(records: Sequence[CellRecord], planned: Request | None) -> list[Row]:
    """Number of cells of each method by status."""
    counts = Counter((_label(record), record.status) for record in records)
    missing = Counter(label for label, _, _ in not_run(records, planned))
    labels = sorted({_label(record) for record in records} | set(missing))
    return [
        {"method": label}
        | {state: counts[label, state] for state in states(records)}
        | {"not run": missing[label]}
        for label in labels
    ]


def coverage_rows(
    table: ScoreTable, planned: Request | None, shown: Sequence[Status] = _STATES
) -> Iterator[Row]:
    """One row for each method and task: cells by status, with the reasons."""
    missing = Counter((label, task) for label, task, _ in not_run(table.cells.values(), planned))
    for method, name in enumerate(table.methods):
        for column, task in enumerate(table.tasks):
            here = table.runs(method, column)
            counts = Counter(record.status for record in here)
            why = sorted({last_line(one.reason) for one in here if one.status != "done"})
            asked = (_label(table.row(method)[0]), task.name)
            yield {
                **conditions(table),
                "method": name,
                "task": task.name,
                **{state: counts[state] for state in shown},
                "not_run": missing[asked],
                "reason": "; ".join(why),
            }


def not_run(records: Iterable[CellRecord], planned: Request | None) -> list[tuple[str, str, int]]:
    """(method, task, seed) of the last request's cells without a record."""
    if planned is None:
        return []
    there = {(_label(record), record.spec.task, record.spec.seed) for record in records}
    seeds = range(int(planned.study.get("seeds", 0)))
    wanted = ((m, t, s) for m in planned.labels for t in planned.tasks for s in seeds)
    return [cell for cell in wanted if cell not in there]


def reasons(records: Iterable[CellRecord]) -> list[str]:
    """A line for each reason why cells were skipped, diverged or failed, with their number."""
    counts = Counter(
        (record.status, _label(record), record.spec.task, last_line(record.reason))
        for record in records
        if record.status != "done"
    )
    return [
        f"- {status}: {label} on {task}, {_count(count, 'cell')}: {reason}"
        for (status, label, task, reason), count in sorted(counts.items())
    ]


def left_out(planned: Request | None) -> list[str]:
    """A line for each task whose data was not available."""
    unavailable = planned.unavailable if planned else {}
    return [f"- {task}: {one_line(reason)}" for task, reason in sorted(unavailable.items())]


def warnings(records: Iterable[CellRecord]) -> list[str]:
    """Warnings of the training: unchanged parameters, learning rates at the edge of the grid."""
    done = [record for record in records if record.status == "done"]
    cells = Counter(_label(record) for record in done)
    unmoved = Counter((_label(r), ", ".join(r.unmoved)) for r in done if r.unmoved)
    edge = Counter(_label(record) for record in done if record.lr_at_edge)
    notes = Counter((_label(record), one_line(note)) for record in done for note in record.notes)
    lines = [
        f"- {label}: training left unchanged: {names} ({count} of {cells[label]} cells)"
        for (label, names), count in sorted(unmoved.items())
    ]
    lines += [
        f"- {label}: the learning rate is at the edge of the grid in {count} of "
        f"{cells[label]} cells"
        for label, count in sorted(edge.items())
    ]
    lines += [
        f"- {label}: {note} ({count} of {cells[label]} cells)"
        for (label, note), count in sorted(notes.items())
    ]
    return lines


def origins(records: Iterable[CellRecord]) -> list[str]:
    """A line for each state of the code, the packages, the machine and the plug-ins."""
    lines: list[str] = []
    groups = {"code": "Code", "software": "Packages", "hardware": "Machine"}
    provenances = [record.provenance for record in records if record.status == "done"]
    for key, title in groups.items():
        found = Counter(_facts(provenance.get(key, {})) for provenance in provenances)
        if key == "code" and len(found) > 1:
            lines.append("- **Mixed code**: these records were made by different states of it")
        lines += [f"- {title}: {facts} ({_count(n, 'cell')})" for facts, n in sorted(found.items())]
    for key in ("method", "task"):
        foreign = {file_only(str(p.get(key, ""))) for p in provenances} - {"built-in", ""}
        lines += [f"- {key.capitalize()}s from {source}" for source in sorted(foreign)]
    if any(provenance.get("code", {}).get("dirty") for provenance in provenances):
        lines.append("- **Uncommitted changes**: part of these records come from a dirty tree")
    return lines


def _facts(values: object) -> str:
    if not isinstance(values, dict):
        return str(values)
    texts = [f"{key} {value}" for key, value in sorted(values.items()) if key != "dirty" and value]
    texts += ["uncommitted changes"] if values.get("dirty") else []
    return ", ".join(texts) or "unknown"


def _label(record: CellRecord) -> str:
    return record.label or record.spec.method


def last_line(reason: str) -> str:
    """The last line of an error."""
    # The lines above are a traceback with paths of the machine that ran the cell.
    return one_line(reason.strip().splitlines()[-1]) if reason.strip() else "no reason given"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
