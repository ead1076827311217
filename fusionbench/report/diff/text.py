"""The comparison of two folders for people (Markdown) and for programs (CSV)."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fusionbench.records.cell import CellRecord
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.diff.facts import Change, identity_changes, origin_changes, study_changes
from fusionbench.report.diff.matching import Sides, matched
from fusionbench.report.diff.scores import SUITE, Shift, shifts
from fusionbench.report.tables import Row, markdown

_READING = """\
B minus A in points with the 95 % interval of the crossed t, for new runs and new images; over the
suite every task counts the same between chance (0) and perfect (100). `=`: alike on every example.
Fewer than 4 seeds: no test. q: Benjamini-Hochberg over all cells below, exploratory."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """One side: its name as it was typed, and what it holds."""

    name: str
    results: Results

    @property
    def done(self) -> list[CellRecord]:
        """Its finished evaluation cells."""
        cells = (cell for table in self.results.tables for cell in table.cells.values())
        return [cell for cell in cells if cell.status == "done"]


def page(a: Folder, b: Folder) -> tuple[str, list[Row]]:
    """The comparison, and a row for every method and task of the tables that both have."""
    pairs, only_a, only_b = matched(a.results.tables, b.results.tables)
    parts = [f"# {a.name} (A) and {b.name} (B)", ""]
    parts += _section(
        "What was asked", _changed(study_changes(a.results.planned, b.results.planned))
    )
    parts += _section("What ran", "\n".join(_coverage(a, b, pairs, only_a, only_b)))
    parts += _section("Identity of cells of one name", _identity(pairs))
    parts += _section("Where it was made", _changed(origin_changes(a.done, b.done)))
    rows: list[Row] = []
    for sides in pairs:
        found = shifts(a.results, b.results, sides)
        rows += [_long_row(sides, shift) for shift in found]
        parts += [f"## Scores: {sides.title}", "", _READING, "", markdown(_rows(found))]
        parts += [*(f"- {gap}" for gap in dict.fromkeys(s.gap for s in found if s.gap)), ""]
    return "\n".join(parts).rstrip() + "\n", rows


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", "", text or "No difference.", ""]


def _changed(changes: Sequence[Change]) -> str:
    rows = [{"what": change.what, "A": change.a, "B": change.b} for change in changes]
    return markdown(rows) if rows else ""


def _coverage(
    a: Folder,
    b: Folder,
    pairs: Sequence[Sides],
    only_a: Sequence[ScoreTable],
    only_b: Sequence[ScoreTable],
) -> Iterator[str]:
    """Counts of cells, and what only one folder has."""
    for letter, folder in (("A", a), ("B", b)):
        counts = Counter(record.status for record in folder.results.records)
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        yield f"- {letter}: {told}"
        yield from (f"  - ignored: {problem}" for problem in folder.results.store.problems)
    for letter, tables in (("A", only_a), ("B", only_b)):
        yield from (f"- only in {letter}: everything under {t.condition.title}" for t in tables)
    for sides in pairs:
        yield from _only(sides)


def _only(sides: Sides) -> Iterator[str]:
    for letter, one, two in (("A", sides.a, sides.b), ("B", sides.b, sides.a)):
        tasks = {task.name for task in one.tasks} - {task.name for task in two.tasks}
        parts = {
            "methods": sorted(set(one.methods) - set(two.methods)),
            "tasks": sorted(tasks),
            "seeds": [str(seed) for seed in sorted(set(one.seeds) - set(two.seeds))],
        }
        for what, names in parts.items():
            if names:
                yield f"- only in {letter} ({one.condition.encoder}): {what} {', '.join(names)}"


def _identity(pairs: Sequence[Sides]) -> str:
    """How many cells are the same in name, identity and outcome, and what differs in the others."""
    both = [cells for sides in pairs for cells in sides.namesakes()]
    if not both:
        return "No finished cell has the same encoder, method, task and seed in both."
    same = [(one, two) for one, two in both if one.id == two.id]
    alike = sum(one.outcomes == two.outcomes for one, two in same)
    lines = [
        f"{len(both)} cells of the same encoder, method, task and seed; {len(same)} of them are "
        f"the same cell by their identity, of which {alike} scored alike on every example."
    ]
    if alike < len(same):
        lines += [
            f"**{len(same) - alike} cells have one identity and two outcomes**: not the "
            "configuration, but code, packages or the machine (below) made the difference."
        ]
    rows = [
        {"what": change.what, "A": change.a, "B": change.b, "cells": str(count)}
        for change, count in identity_changes(both)
    ]
    return "\n\n".join([*lines, markdown(rows)] if rows else lines)


def _rows(found: Sequence[Shift]) -> list[Row]:
    overs = dict.fromkeys(sorted((s.over for s in found), key=lambda over: over != SUITE))
    methods = dict.fromkeys(shift.method for shift in found)
    cells = {(shift.method, shift.over): shift for shift in found}
    return [
        {"method": method}
        | {over: _cell(cells[method, over]) for over in overs if (method, over) in cells}
        for method in methods
    ]


def _cell(shift: Shift) -> str:
    """`+1.2 ± 0.8 (q .03)`, `=` where nothing differs, `-` where nothing can be compared."""
    if shift.identical:
        return "="
    if shift.estimate is None:
        return "-"
    value, half = float(shift.estimate.value), float(shift.estimate.half_width())
    test = f" (q {shift.q:.2f})" if not math.isnan(shift.q) else ""
    return f"{100 * value:+.1f} ± {100 * half:.1f}{test}"


def _long_row(sides: Sides, shift: Shift) -> Row:
    estimate = shift.estimate
    low, high = estimate.interval() if estimate else (float("nan"), float("nan"))
    value = float(estimate.value) if estimate else float("nan")
    return {
        "condition_a": sides.a.condition.title,
        "condition_b": sides.b.condition.title,
        "method": shift.method,
        "over": shift.over,
        "n_tasks": str(shift.tasks),
        "n_seeds": str(shift.seeds),
        "n_examples": str(shift.items),
        "identical": str(shift.identical).lower(),
        "difference": _digits(0.0 if shift.identical else 100 * value),
        "low": _digits(100 * float(low)),
        "high": _digits(100 * float(high)),
        "p": _digits(shift.p),
        "q": _digits(shift.q),
        "why_not": shift.gap,
    }


def _digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"
