"""`tables/models`: what each model of the track `vlm` was trained on, and what its answers say.

A part for each condition: the stages of its training, the tasks against the method `blind`, and the
measures of benchmarks.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fusionbench.records.cell import Stage, Training
from fusionbench.records.history import Request
from fusionbench.records.references import Compared, compared
from fusionbench.records.scores import BLIND, Condition, ScoreTable
from fusionbench.report.analysis import Analysis
from fusionbench.report.measures import long_row, measures
from fusionbench.report.page import Material, Page
from fusionbench.report.tables import (
    GridRow,
    Row,
    latex_grid,
    markdown,
    p_text,
    points,
    training_name,
)

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
