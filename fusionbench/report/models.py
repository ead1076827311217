"""`tables/models`: what each model of the track `vlm` was trained on, and what its answers say.

A part for each condition: the stages of its training, the tasks against the method `blind`, and the
measures of benchmarks. A measure such as F1 or acc+ is no mean over questions, so no test of the
report is about it. Its difference has a paired bootstrap over images instead, from the stored
answers, for the planned contrasts alone. The trained runs are taken as given: the interval knows
nothing of other seeds.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fusionbench.api.benchmarks import Benchmark, Tallied
from fusionbench.api.errors import UserError
from fusionbench.metrics.bootstrap import Difference, paired
from fusionbench.records.cell import CellRecord, Stage, Training
from fusionbench.records.history import Request
from fusionbench.records.outcomes import answers_of
from fusionbench.records.pairs import Results
from fusionbench.records.references import Compared, compared
from fusionbench.records.scores import BLIND, Condition, ScoreTable
from fusionbench.registry.catalog import Catalog, read_catalog
from fusionbench.registry.plugins import load_benchmark
from fusionbench.report.analysis import Analysis
from fusionbench.report.page import Material, Page
from fusionbench.report.tables import (
    GridRow,
    Row,
    conditions,
    latex_grid,
    markdown,
    p_text,
    points,
    training_name,
)

_PART = "/"
"""`f1/random`: the measure `f1` of the part `random`."""
_MOST_ROWS = 60
"""A longer table of parts is left to the CSV."""
_NOTE = (
    "Means over runs, as the papers of the benchmark report each: shares from 0 to 1, points of "
    "MME, numbers of questions. No test is about them."
)
_DIFFERENCES = (
    "Measures that are no mean over questions, method minus baseline, with the 95 % interval of a "
    "paired bootstrap over images (2,000 draws; both methods and all runs get the same images). It "
    "takes the trained runs as given, so it is no verdict on the methods and has no star."
)


@dataclass(frozen=True, kw_only=True)
class ConditionMeasures:
    """The measures of one condition: its text, and rows of `models.csv`."""

    markdown: str = ""
    rows: tuple[Row, ...] = ()


def measures(results: Results, analysis: Analysis) -> ConditionMeasures:
    """The measures of every benchmark of a condition; empty without any."""
    table = analysis.table
    texts: list[str] = []
    rows: list[Row] = []
    for column, task in enumerate(table.tasks):
        found = _of_task(table, column)
        if not found:
            continue
        texts += [f"#### Measures of {task.name}", "", markdown(_plain_grid(analysis, found))]
        parts = _parts_grid(analysis, found)
        texts += [markdown(parts)] if 0 < len(parts) <= _MOST_ROWS else []
        texts += [_NOTE]
        texts += ["Its parts are in models.csv."] if len(parts) > _MOST_ROWS else []
        texts.append("")
        rows += _long(table, column, found)
    stored = StoredCounts(results, table)
    differences = list(stored.differences(analysis)) if rows else []
    if differences:
        texts += ["#### Differences of measures", "", markdown([_row(*one) for one in differences])]
        texts += [_DIFFERENCES, ""]
    texts += [f"- not compared: {reason}" for reason in stored.problems]
    rows += [_long_difference(table, *one) for one in differences]
    return ConditionMeasures(markdown="\n".join(texts), rows=tuple(rows))


Values = Mapping[int, Mapping[str, float | None]]
"""Method -> measure -> mean over runs; None where it is undefined in some run."""


def _of_task(table: ScoreTable, column: int) -> Values:
    found: dict[int, dict[str, float | None]] = {}
    for row in range(len(table.methods)):
        runs = [one for one in table.runs(row, column) if one.status == "done" and one.measures]
        names = dict.fromkeys(name for one in runs for name in one.measures)
        if names:
            found[row] = {name: _mean([one.measures.get(name) for one in runs]) for name in names}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    # Equal counts of questions stay whole numbers.
    return known[0] if len(set(known)) == 1 else float(np.mean(known))


def _names(found: Values) -> list[str]:
    return list(dict.fromkeys(name for one in found.values() for name in one))


def _plain_grid(analysis: Analysis, found: Values) -> list[GridRow]:
    """A row for each method: the measures of all questions."""
    names = [name for name in _names(found) if _PART not in name]
    return [
        {"method": analysis.labels[row]} | {name: shown(found[row].get(name)) for name in names}
        for row in sorted(found)
    ]


def _parts_grid(analysis: Analysis, found: Values) -> list[GridRow]:
    """A row for each method and part (category, task) of the benchmark."""
    split = [name.split(_PART, 1) for name in _names(found) if _PART in name]
    measured = list(dict.fromkeys(name for name, _ in split))
    parts = list(dict.fromkeys(part for _, part in split))
    return [
        {"method": analysis.labels[row], "part": part}
        | {name: shown(found[row].get(f"{name}{_PART}{part}")) for name in measured}
        for row in sorted(found)
        for part in parts
    ]


def shown(value: float | None, *, sign: bool = False) -> str:
    """`0.8804`, a share; `1510.7`, points; `9000`, a number; `-` where it is undefined."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:+d}" if sign else str(value)
    # Shares to four decimals, points to one; adding zero turns -0.0 into 0.0.
    decimals = 4 if abs(value) <= 1 else 1
    return f"{round(value, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"


def _long(table: ScoreTable, column: int, found: Values) -> Iterator[Row]:
    for row, values in sorted(found.items()):
        done = [one for one in table.runs(row, column) if one.status == "done"]
        for name, value in values.items():
            yield long_row(
                table, "measure", task=table.tasks[column].name, method=table.methods[row],
                name=name, value=value, runs=len(done),
            )  # fmt: skip


def long_row(table: ScoreTable, kind: str, **facts: object) -> Row:
    """One row of `models.csv`; every kind has the same columns."""
    columns = (
        "task", "method", "baseline", "name", "value", "value_low", "value_high", "p_adjusted",
        "runs", "images",
    )  # fmt: skip
    return {**conditions(table), "kind": kind, **dict.fromkeys(columns), **facts}


@dataclass(frozen=True, kw_only=True)
class Contrasted:
    """The measures of a method minus those of a baseline on one benchmark."""

    method: str
    baseline: str
    task: str
    runs: int
    measures: Mapping[str, Difference]


class StoredCounts:
    """Counts of the stored answers of one condition, read once each."""

    def __init__(self, results: Results, table: ScoreTable) -> None:
        self.results, self.table = results, table
        self.problems: dict[str, None] = {}
        """Why answers could not be counted, each reason once."""
        self._counted: dict[str, Tallied | None] = {}

    @cached_property
    def catalog(self) -> Catalog:
        """Benchmarks of this installation; their counts are code."""
        return read_catalog()

    def differences(self, analysis: Analysis) -> Iterator[tuple[Contrasted, str, Difference]]:
        """Contrast, measure and difference of each planned contrast on each benchmark."""
        for one in self.contrasted(analysis):
            for name, difference in one.measures.items():
                if difference.estimate is not None:
                    yield one, name, difference

    def contrasted(self, analysis: Analysis) -> Iterator[Contrasted]:
        """Each planned contrast on each benchmark with such measures."""
        methods = self.table.methods
        for contrast in analysis.plan.contrasts:
            if {contrast.method, contrast.baseline} <= set(methods):
                rows = methods.index(contrast.method), methods.index(contrast.baseline)
                for column in range(len(self.table.tasks)):
                    if (found := self._of(*rows, column)) is not None:
                        yield found

    def _of(self, method: int, baseline: int, column: int) -> Contrasted | None:
        """None for a task without such measures."""
        first, second = (self._done(row, column) for row in (method, baseline))
        seeds = sorted(first.keys() & second.keys())
        if not seeds or first[seeds[0]].items != second[seeds[0]].items:
            return None
        tallies = [[self.tally(side[seed]) for seed in seeds] for side in (first, second)]
        known = [[one for one in side if one is not None] for side in tallies]
        if min(map(len, known)) < len(seeds):
            return None
        groups = self.results.items(first[seeds[0]]).groups
        return Contrasted(
            method=self.table.methods[method],
            baseline=self.table.methods[baseline],
            task=self.table.tasks[column].name,
            runs=len(seeds),
            measures=paired(known[0], known[1], groups),
        )

    def _done(self, row: int, column: int) -> dict[int, CellRecord]:
        """Finished cells with answers, by seed."""
        runs = self.table.runs(row, column)
        return {one.spec.seed: one for one in runs if one.status == "done" and one.answers}

    def tally(self, record: CellRecord) -> Tallied | None:
        """The counts of a record's answers; None for a task without any, and for a problem."""
        if record.id not in self._counted:
            self._counted[record.id] = self._count(record)
        return self._counted[record.id]

    def _count(self, record: CellRecord) -> Tallied | None:
        store, items = self.results.store, self.results.items(record)
        if not items.gold:
            return None
        try:
            benchmark = self._benchmark(record)
            answers = answers_of(items, store.answers(record), self.results.outcomes(record))
            return benchmark.tally(answers)
        except (UserError, ValueError) as error:
            # A report names no folder of the machine that made it.
            text = str(error).replace(f"{store.folder}/", "")
            self.problems[f"{record.label} on {record.spec.task}: {text}"] = None
            return None

    def _benchmark(self, record: CellRecord) -> Benchmark:
        """The benchmark in the version that scored the record. Raises UserError without it."""
        name, version = record.spec.task, record.spec.task_version
        card = self.catalog.benchmarks.get(name)
        if card is None or card.version != version:
            raise UserError(f"version {version} of the benchmark {name} is not installed here")
        return load_benchmark(card)


def _row(contrast: Contrasted, name: str, one: Difference) -> GridRow:
    return {
        "contrast": f"{contrast.method} - {contrast.baseline}",
        "benchmark": contrast.task,
        "measure": name,
        "difference": f"{shown(one.estimate, sign=True)} "
        f"[{shown(one.low, sign=True)}, {shown(one.high, sign=True)}]",
        "runs": contrast.runs,
        "images": one.images,
    }


def _long_difference(table: ScoreTable, contrast: Contrasted, name: str, one: Difference) -> Row:
    return long_row(
        table, "difference", task=contrast.task, method=contrast.method,
        baseline=contrast.baseline, name=name, value=one.estimate, value_low=one.low,
        value_high=one.high, runs=contrast.runs, images=one.images,
    )  # fmt: skip


_BLIND = """\
The method `blind` is trained like the others with zeros in place of image tokens. *seeing*: mean of
all other methods. p is one-sided, paired over images, corrected by Holm over the tasks."""
_QUERIES = {
    "question": "the question of the turn",
    "prompt": "all text of the prompt without answers",
    "conversation": "the questions up to the turn",
}
_MEANS = {"token": "labelled tokens of the batch", "sample": "rows, each the mean of its tokens"}
_PROJECTORS = {
    "normed": "two layers behind a LayerNorm without parameters",
    "plain": "two layers",
}


def models_page(report: Material) -> Page:
    """A part for each condition of the track `vlm`; empty without any."""
    texts, latex, rows = [], [], list[Row]()
    for analysis in report.analyses:
        condition = analysis.table.condition
        if condition.training is None:
            continue
        against = compared(analysis.table, report.results.outcomes, report.results.images)
        found = measures(report.results, analysis)
        parts = [f"### {condition.title}", "", *_trained(condition, condition.training)]
        parts += [*_same(analysis.table, report.planned), *_against_blind(analysis.table, against)]
        parts += [*_counted(analysis.table), "", found.markdown]
        texts.append("\n".join(parts).rstrip() + "\n")
        grid = _blind_grid(analysis.table, against)
        latex.append(latex_grid(grid, f"Tasks against blind; {condition.title}", "blind"))
        rows += [*_stage_rows(analysis), *_blind_rows(analysis.table, against), *found.rows]
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(filter(None, latex)))


def _trained(condition: Condition, training: Training) -> list[str]:
    """What was trained, on what, and from what."""
    lines = [
        f"Training {training_name(training)}; one training serves all tasks of its seed.",
        "",
        markdown([_stage_row(at, one, condition) for at, one in enumerate(training.stages, 1)]),
        f"- language model: {training.language} (fingerprint {training.language_weights[:12]})",
        f"- a fusion sees {_QUERIES[training.query]} (`query: {training.query}`)",
        f"- the loss is a mean over {_MEANS[training.mean]} (`mean: {training.mean}`)",
        f"- projector: {_PROJECTORS[training.projector]} (`{training.projector}`); "
        f"pixels: `{training.pixels}`",
    ]
    lines += [f"- longest row: {training.length} tokens"] if training.length else []
    return [*lines, ""]


def _stage_row(at: int, stage: Stage, condition: Condition) -> GridRow:
    budget = condition.budget
    rates = f"{stage.lr:g}" if stage.lr else " or ".join(f"{rate:g}" for rate in budget.lrs)
    return {
        "stage": at,
        "trained": ", ".join(stage.trained),
        "on": _parts(stage),
        "rows": f"{stage.count:,}",
        "template": stage.template,
        "steps": stage.steps or budget.steps,
        "batch": stage.batch or budget.batch,
        "learning rate": rates,
    }


def _parts(stage: Stage) -> str:
    """`digits (1,024), scenes_count[share=2] (1,024)`."""
    sizes = stage.sizes or (0,) * len(stage.parts)
    return ", ".join(
        f"{part} ({size:,})" if size else part
        for part, size in zip(stage.parts, sizes, strict=True)
    )


def _same(table: ScoreTable, planned: Request | None) -> Iterator[str]:
    """Names that differ from another in the reader alone, which this track does not have."""
    here = planned.same if planned else {}
    lines = [
        f"`{name}` is `{kept}`" for name, kept in sorted(here.items()) if kept in table.methods
    ]
    if lines:
        yield (
            f"Names that differ in the reader alone are one method here, since the reader is the "
            f"language model: {'; '.join(lines)}."
        )
        yield ""


def _against_blind(table: ScoreTable, against: Mapping[int, Compared]) -> Iterator[str]:
    """The table of tasks, and which of them leave the means."""
    if not against:
        yield "No cell of the method `blind` here: no task can be compared with it."
        return
    yield markdown(_blind_grid(table, against))
    yield _BLIND
    marked = [column for column, task in enumerate(table.tasks) if task.mark == BLIND]
    weak = [column for column, one in sorted(against.items()) if not one.above]
    yield ""
    if marked:
        named = "; ".join(_said(table, column, against[column]) for column in marked)
        yield f"**Left out of the means over tasks**, since no image is needed there: {named}."
    elif weak:
        yield (
            "On no task are the methods above `blind`. None is left out, since a mean needs tasks; "
            "these scores say nothing about vision."
        )
    else:
        yield "On every task the methods are above `blind`."


def _said(table: ScoreTable, column: int, one: Compared) -> str:
    return (
        f"`{table.tasks[column].name}` (methods {100 * one.seeing:.1f}, blind "
        f"{100 * one.blind:.1f}, p {p_text(one.p)})"
    )


def _blind_grid(table: ScoreTable, against: Mapping[int, Compared]) -> list[GridRow]:
    return [
        {
            "task": table.tasks[column].name,
            "chance": f"{100 * table.tasks[column].chance:.1f}",
            "seeing": f"{100 * one.seeing:.1f}",
            "blind": f"{100 * one.blind:.1f}",
            "difference": points(one.seeing - one.blind),
            "methods": one.methods,
            "images": one.images,
            "p": p_text(one.p),
            "mark": table.tasks[column].mark,
        }
        for column, one in sorted(against.items())
    ]


def _counted(table: ScoreTable) -> Iterator[str]:
    """What was counted in training and test, the most of any cell, and imported records."""
    most: dict[str, int] = {}
    for record in table.cells.values():
        for name, count in record.counts.items():
            most[name] = max(count, most.get(name, 0))
    for name, count in sorted(most.items()):
        yield f"- {name}: at most {count:,} in a cell"
    imported = Counter(
        (record.source, record.label or record.spec.method)
        for record in table.cells.values()
        if record.source
    )
    for (source, label), count in sorted(imported.items()):
        cells = "1 cell" if count == 1 else f"{count} cells"
        yield f"- {label}: imported from {source} ({cells})"


def _stage_rows(analysis: Analysis) -> Iterator[Row]:
    table, training = analysis.table, analysis.table.condition.training
    for at, stage in enumerate(training.stages if training else (), 1):
        for part, size in zip(stage.parts, stage.sizes or [None] * len(stage.parts), strict=True):
            name = f"stage {at}: {part}"
            yield long_row(table, "rows", name=name, value=size)


def _blind_rows(table: ScoreTable, against: Mapping[int, Compared]) -> Sequence[Row]:
    return [
        long_row(
            table, "blind", task=table.tasks[column].name, name=name, value=value,
            p_adjusted=one.p, images=one.images,
        )
        for column, one in sorted(against.items())
        for name, value in (("seeing", one.seeing), ("blind", one.blind))
    ]  # fmt: skip
