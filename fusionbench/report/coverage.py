"""`tables/coverage`: what ran, what did not and why, its sources, and methods that see nothing.

A reader that gets no information from a method gives one answer to every example, whatever the
image. Records have the number of distinct answers. Those written before it was stored show it by
their outcomes: on a task, the right examples of two such runs are those of one class each, hence
the same or without overlap, and their share is at most sqrt(chance), since chance is the sum of the
squared shares of the answers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Shaped

from fusionbench.records.cell import CellRecord, Status
from fusionbench.records.folder import Place
from fusionbench.records.history import Request
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.records.states import encoders_of, of_request, wanted
from fusionbench.records.text import file_only, one_line
from fusionbench.report.analysis import Analysis
from fusionbench.report.page import Material, Page
from fusionbench.report.tables import Row, conditions, markdown

_FEWEST = 2
"""Runs of a task that are compared; one run shows nothing."""
_ROUNDING = 1e-9


def scored_alike(table: ScoreTable) -> Iterator[str]:
    """A sentence for each method that scored as another on every example."""
    for row, other in sorted(table.identical.items()):
        cells = sum(record.status == "done" for record in table.row(row))
        yield (
            f"`{table.methods[row]}` scored as `{table.methods[other]}` on every single example of "
            f"all {cells} cells: the two scored alike and cannot be told apart here.\n"
        )


def dead(results: Results, table: ScoreTable) -> Iterator[str]:
    """A line for each method with runs that give one answer to every example of a task."""
    for row, tasks in dead_tasks(results, table).items():
        name = table.methods[row]
        yield f"- {name}: dead on {', '.join(tasks)}: one and the same answer to every example"


def dead_tasks(results: Results, table: ScoreTable) -> dict[int, list[str]]:
    """Row of each method with such runs -> the tasks, with the number of runs if not all are."""
    found = {}
    for row in range(len(table.methods)):
        said = [_dead_on(results, table, row, column) for column in range(len(table.tasks))]
        if tasks := [text for text in said if text]:
            found[row] = tasks
    return found


def _dead_on(results: Results, table: ScoreTable, method: int, task: int) -> str:
    """The task's name if the method is dead there, with the number of such runs if not all are."""
    facts = table.tasks[task]
    done = [run for run in table.runs(method, task) if run.status == "done"]
    counts = [run.distinct for run in done]
    if not counts or not all(counts):
        guessed = one_answer(_outcomes(results, done), chance=facts.chance)
        return facts.name if guessed else ""
    few = counts.count(1)
    if not few:
        return ""
    return facts.name if few == len(counts) else f"{facts.name} ({few} of {len(counts)} runs)"


def one_answer(outcomes: Sequence[Shaped[np.ndarray, " example"]], *, chance: float) -> bool:
    """Whether the outcomes of these runs of a task are those of a constant answer each.

    False below two runs, and for outcomes other than 0 and 1.
    """
    if len(outcomes) < _FEWEST or len({len(each) for each in outcomes}) > 1:
        return False
    right = np.array(outcomes)
    shares = right.mean(axis=1)
    if not np.isin(right, (0, 1)).all() or shares.max() > chance**0.5 + _ROUNDING:
        return False
    pairs = combinations(right.astype(np.bool_), 2)
    apart = all(np.array_equal(one, other) or not (one & other).any() for one, other in pairs)
    # Runs that are right nowhere share no class either, but may be anything.
    return apart and bool(shares.min() > 0)


def _outcomes(results: Results, done: Sequence[CellRecord]) -> list[Shaped[np.ndarray, " example"]]:
    kept = [run for run in done if run.outcomes]
    return [results.outcomes(run) for run in kept] if len({run.items for run in kept}) == 1 else []


_STATES: tuple[Status, ...] = ("done", "skipped", "diverged", "failed")


def coverage_page(report: Material) -> Page:
    """Cells by status, reasons, warnings of the training, and the records' origins."""
    records, planned = report.results.records, report.planned
    status = status_rows(report.results)
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
    shown, tables = states(records), report.results.tables
    return Page(
        markdown="\n".join(parts),
        rows=[row for one in tables for row in coverage_rows(report.results, one, shown)],
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


def status_rows(results: Results) -> list[Row]:
    """Number of cells of each method by status."""
    records = results.records
    shown = states(records)
    counts = Counter((_label(record), record.status) for record in records)
    missing = Counter(label for label, _, _ in not_run(results))
    labels = sorted({_label(record) for record in records} | set(missing))
    return [
        {"method": label}
        | {state: counts[label, state] for state in shown}
        | {"not run": missing[label]}
        for label in labels
    ]


def coverage_rows(
    results: Results, table: ScoreTable, shown: Sequence[Status] = _STATES
) -> Iterator[Row]:
    """One row for each method and task: cells by status, with the reasons."""
    missing = Counter((label, task) for label, task, _ in not_run(results, table))
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


def not_run(results: Results, table: ScoreTable | None = None) -> list[Place]:
    """The last request's cells without a record; of a table, none if it is of another request."""
    planned, requests = results.planned, results.store.history.requests()
    if planned is None:
        return []
    records = results.records if table is None else tuple(table.cells.values())
    there = of_request(planned, records, encoders_of(requests))
    if table and not there:
        return []
    return [place for place in wanted(planned) if place not in there]


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
