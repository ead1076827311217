"""Differences of two results folders: the request, cell identity, code and machines, and scores.

Scores are paired, the second folder minus the first: same method, task, seed and example. With the
same seeds both folders drew the same training examples in the same order, so a score difference
comes from the listed facts. All tests are exploratory (Benjamini-Hochberg).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusionbench.records.cell import CellRecord, plain_training
from fusionbench.records.history import Request
from fusionbench.records.pairs import (
    Measured,
    NotComparable,
    Pair,
    Results,
    finished,
    measure,
    one_scope,
    require_images,
    require_paired,
    task_weights,
)
from fusionbench.records.scores import Condition, ScoreTable
from fusionbench.records.text import file_only
from fusionbench.report.tables import Row, csv_row, markdown, p_text
from fusionbench.stats import verdicts
from fusionbench.stats.verdicts import Correction, Decision, Question

SUITE = "suite"
_ORIGINS = ("code", "software", "hardware")
_WIDEST = 60
"""Characters of a shown value."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One fact that differs, with its value in each folder as text."""

    what: str
    a: str
    b: str


def study_changes(a: Request | None, b: Request | None) -> list[Change]:
    """Changed keys of the last request; empty if a folder has no history."""
    if a is None or b is None:
        return []
    one, two = (flat(run.study) | {"fusionbench": run.version} for run in (a, b))
    return changes(one, two)


def identity_changes(pairs: Iterable[tuple[CellRecord, CellRecord]]) -> list[tuple[Change, int]]:
    """Changed identity fields of cells with one name in both folders, with the number of cells.

    Identity fields are weights, versions, settings, data and budget.
    """
    counts: Counter[Change] = Counter()
    for one, two in pairs:
        counts.update(changes(_identity_fields(one), _identity_fields(two)))
    return sorted(counts.items(), key=lambda found: (-found[1], found[0].what, found[0].a))


def origin_changes(a: Sequence[CellRecord], b: Sequence[CellRecord]) -> list[Change]:
    """Changed code, packages, machines and plug-ins."""
    return changes(_origins(a), _origins(b), absent="nothing")


def changes(a: Mapping[str, Any], b: Mapping[str, Any], *, absent: str = "not set") -> list[Change]:
    """The keys whose values differ, sorted."""
    return [
        Change(what=key, a=shown(a.get(key), absent), b=shown(b.get(key), absent))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots: `budget.steps`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def shown(value: object, absent: str) -> str:
    """A value in one line of at most `_WIDEST` characters."""
    if value is None or value == "":
        return absent
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _identity_fields(record: CellRecord) -> dict[str, Any]:
    spec = record.spec
    facts = {
        "encoder weights": spec.weights,
        "data of the task": spec.data,
        "version of the method": spec.method_version,
        "version of the task": spec.task_version,
        "chance": record.chance,
    }
    settings = {f"setting {key}": value for key, value in spec.settings.items()}
    budget = {f"budget.{key}": value for key, value in vars(spec.budget).items()}
    training = {} if spec.training is None else flat(plain_training(spec.training), "training.")
    return facts | settings | budget | training


def _origins(records: Sequence[CellRecord]) -> dict[str, str]:
    """Every fact with all its values in a folder: `torch: 2.13 (12 cells), 2.14 (40 cells)`."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for key, value in _facts(record.provenance):
            counts.setdefault(key, Counter())[value] += 1
    return {key: _counted(found, len(records)) for key, found in counts.items()}


def _counted(found: Counter[str], cells: int) -> str:
    if len(found) == 1 and found.total() == cells:
        return next(iter(found))
    return ", ".join(f"{value} ({count} cells)" for value, count in sorted(found.items()))


def _facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in _ORIGINS:
        for key, value in provenance.get(part, {}).items():
            yield f"{part} {key}", str(value)
    for kind in ("method", "task"):
        source = file_only(str(provenance.get(kind, "built-in")))
        if source != "built-in":
            yield f"{kind}s from", source


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Two comparable tables, one of each folder."""

    a: ScoreTable
    b: ScoreTable

    @property
    def title(self) -> str:
        """The condition, or both where they differ."""
        one, two = self.a.condition.title, self.b.condition.title
        return one if one == two else f"{one} | {two}"

    @property
    def methods(self) -> list[str]:
        """Methods in both."""
        return [name for name in self.a.methods if name in self.b.methods]

    @property
    def tasks(self) -> list[str]:
        """Tasks in both."""
        theirs = {task.name for task in self.b.tasks}
        return [task.name for task in self.a.tasks if task.name in theirs]

    def namesakes(self) -> Iterator[tuple[CellRecord, CellRecord]]:
        """Finished cells of the same method, task and seed."""
        theirs = {_name(self.b, place): cell for place, cell in self.b.cells.items()}
        for place, cell in sorted(self.a.cells.items()):
            other = theirs.get(_name(self.a, place))
            if other is not None and cell.status == other.status == "done":
                yield cell, other


def matched(
    a: Sequence[ScoreTable], b: Sequence[ScoreTable]
) -> tuple[list[Sides], list[ScoreTable], list[ScoreTable]]:
    """Pairs of tables, then the tables that only one folder has.

    Tables of equal conditions are paired first; then the only remaining table of an encoder and
    track in each folder, whose budgets or weights differ.
    """
    left, right = list(a), list(b)
    pairs: list[Sides] = []
    for same in (_same_condition, _same_encoder):
        for one in list(left):
            here = [two for two in left if same(two.condition, one.condition)]
            there = [two for two in right if same(two.condition, one.condition)]
            if len(here) == len(there) == 1:
                pairs.append(Sides(a=one, b=there[0]))
                left.remove(one)
                right.remove(there[0])
    return pairs, left, right


def _same_condition(one: Condition, two: Condition) -> bool:
    return one == two


def _same_encoder(one: Condition, two: Condition) -> bool:
    return (one.track, one.encoder, one.source) == (two.track, two.encoder, two.source)


def _name(table: ScoreTable, place: tuple[int, int, int]) -> tuple[str, str, int]:
    method, task, seed = place
    return table.methods[method], table.tasks[task].name, table.seeds[seed]


@dataclass(frozen=True, kw_only=True)
class Shift:
    """B minus A of one method over one task or the suite."""

    method: str
    over: str
    tasks: int
    measured: Measured
    answer: Decision = Decision()

    @property
    def gap(self) -> str:
        """Why there is no difference."""
        return self.measured.gap


def shifts(a: Results, b: Results, sides: Sides) -> list[Shift]:
    """Every method in both tables: over the suite, then task by task."""
    found = [shift for method in sides.methods for shift in _of_method(a, b, sides, method)]
    # Identical scores are a statement about the code, not a test.
    tested = [
        index
        for index, shift in enumerate(found)
        if not (shift.measured.untestable or shift.measured.identical)
    ]
    questions = [
        Question(references=(one,))
        for one in (found[index].measured.estimate for index in tested)
        if one is not None
    ]
    answers = verdicts.judge(questions, Correction.BENJAMINI_HOCHBERG)
    for index, answer in zip(tested, answers, strict=True):
        found[index] = replace(found[index], answer=answer)
    return found


def _of_method(a: Results, b: Results, sides: Sides, method: str) -> Iterator[Shift]:
    pairs: dict[str, Pair | NotComparable] = {}
    for task in sides.tasks:
        try:
            pairs[task] = _pair(a, b, sides, method, task)
        except NotComparable as gap:
            pairs[task] = gap
    theirs = {task.name: task for task in sides.b.tasks}
    suite = [
        task.name
        for task in sides.a.tasks
        if task.counts and task.name in pairs
        if theirs[task.name].counts and theirs[task.name].chance == task.chance
    ]
    overs = {SUITE: suite} if len(suite) > 1 else {}
    for over, tasks in (overs | {task: [task] for task in pairs}).items():
        columns = [_column(sides, task) for task in tasks]
        measured = measure([pairs[task] for task in tasks], task_weights(sides.a, columns))
        yield Shift(method=method, over=over, tasks=len(tasks), measured=measured)


def _pair(a: Results, b: Results, sides: Sides, method: str, task: str) -> Pair:
    """Cells of one method and task on common seeds and examples. Raises NotComparable."""
    row, column = sides.a.methods.index(method), _column(sides, task)
    other = [t.name for t in sides.b.tasks].index(task)
    first = finished(sides.a, row, column)
    second = finished(sides.b, sides.b.methods.index(method), other)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise NotComparable(f"no seed of {method} on {task} is in both")
    for side in (first, second):
        require_paired([side[seed] for seed in seeds], task)
    mine, theirs = a.items(first[seeds[0]]), b.items(second[seeds[0]])
    place = {name: index for index, name in enumerate(theirs.names)}
    keep = [index for index, name in enumerate(mine.names) if name in place]
    if len(keep) < 2:
        raise NotComparable(f"{task} has no examples in common")
    at = [place[mine.names[index]] for index in keep]
    require_images(np.asarray(mine.groups)[keep], task)
    after = np.stack([b.outcomes(second[seed])[at] for seed in seeds]).astype(np.float64)
    before = np.stack([a.outcomes(first[seed])[keep] for seed in seeds]).astype(np.float64)
    return Pair(
        task=sides.a.tasks[column],
        seeds=tuple(seeds),
        unpaired=tuple(sorted(first.keys() ^ second.keys())),
        differences=after - before,
        groups=np.asarray(mine.groups)[keep],
        scope=one_scope([*first.values(), *second.values()], task),
    )


def _column(sides: Sides, task: str) -> int:
    return [t.name for t in sides.a.tasks].index(task)


_READING = """\
B minus A in points with the 95 % interval of the crossed t, for new runs and new images; over the
suite every task that counts in both, with one chance, counts the same between chance (0) and
perfect (100). `=`: equal on every example.
Fewer than 4 seeds: no test. q: Benjamini-Hochberg over all cells below, exploratory."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """One side: the folder's name as typed, and its results."""

    name: str
    results: Results

    @property
    def done(self) -> list[CellRecord]:
        """Its finished evaluation cells."""
        cells = (cell for table in self.results.tables for cell in table.cells.values())
        return [cell for cell in cells if cell.status == "done"]


def page(a: Folder, b: Folder) -> tuple[str, list[Row]]:
    """The comparison as Markdown, and a row for every method and task of paired tables."""
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
        yield f"- {letter}: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
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
    """Numbers of cells with the same name, identity and outcome, and the changed fields."""
    both = [cells for sides in pairs for cells in sides.namesakes()]
    if not both:
        return "No finished cell has the same encoder, method, task and seed in both."
    same = [(one, two) for one, two in both if one.id == two.id]
    equal = sum(one.outcomes == two.outcomes for one, two in same)
    lines = [
        f"{len(both)} cells of the same encoder, method, task and seed; {len(same)} of them are "
        f"the same cell by their identity, of which {equal} have equal scores on every example."
    ]
    if equal < len(same):
        lines += [
            f"**{len(same) - equal} cells have one identity and two outcomes**: the difference "
            "comes from code, packages or the machine, as far as they are recorded below, not "
            "from the configuration."
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
    """`+1.2 ± 0.8 (q 0.031)`, `=` where nothing differs, `-` where nothing can be compared."""
    estimate = shift.measured.estimate
    if shift.measured.identical:
        return "="
    if estimate is None:
        return "-"
    q = shift.answer.p_adjusted
    value, half = 100 * float(estimate.value), 100 * float(estimate.half_width())
    return f"{value:+.1f} ± {half:.1f}" + ("" if q is None else f" (q {p_text(q)})")


def _long_row(sides: Sides, shift: Shift) -> Row:
    measured = shift.measured
    estimate = None if measured.identical else measured.estimate
    low, high = (None, None) if estimate is None else estimate.interval()
    value = 0.0 if measured.identical else None if estimate is None else 100 * estimate.value
    return csv_row(
        {
            "condition_a": sides.a.condition.title,
            "condition_b": sides.b.condition.title,
            "method": shift.method,
            "over": shift.over,
            "n_tasks": shift.tasks,
            "n_seeds": len(measured.seeds),
            "n_examples": measured.examples,
            "identical": measured.identical,
            "difference": value,
            "low": None if low is None else 100 * low,
            "high": None if high is None else 100 * high,
            "p": shift.answer.p,
            "q": shift.answer.p_adjusted,
            "why_not": shift.gap,
        }
    )
