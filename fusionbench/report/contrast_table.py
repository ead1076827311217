"""`tables/contrasts`: what was planned and its verdicts, task by task, and everything else."""

from collections.abc import Iterator, Sequence

from fusionbench.report.analysis.analysis import Analysis
from fusionbench.report.analysis.families import OPEN
from fusionbench.report.analysis.measure import Measured
from fusionbench.report.analysis.rows import ContrastRow
from fusionbench.report.contrast_columns import long_row, value
from fusionbench.report.contrast_notes import notes
from fusionbench.report.grid import GridRow, latex_grid, markdown_grid
from fusionbench.report.numbers import interval, p_text, points
from fusionbench.report.sections import Page

RING = "○"
"""Marks an exploratory comparison that Benjamini-Hochberg lets through; no star."""


def contrast_page(analyses: Sequence[Analysis]) -> Page:
    """All comparisons of all conditions."""
    rows = [long_row(analysis, row) for analysis in analyses for row in analysis.rows]
    latex = []
    for analysis in analyses:
        title = analysis.table.condition.title
        grids = {"planned": _planned(analysis), "followup": _followups(analysis)}
        grids = grids if analysis.testable else {"planned": _untested(analysis)}
        for kind, grid in grids.items():
            caption = f"{_CAPTIONS[kind]}; {title}"
            latex.append(latex_grid(grid, caption, f"{kind}-{analysis.table.condition.encoder}"))
    return Page(
        markdown="\n".join(_text(analysis) for analysis in analyses),
        rows=tuple(rows),
        latex="\n".join(text for text in latex if text),
    )


_CAPTIONS = {
    "planned": "Planned contrasts, in points",
    "followup": "Planned contrasts task by task, in points",
}


def _text(analysis: Analysis) -> str:
    parts = [f"### {analysis.table.condition.title}", "", *notes(analysis), ""]
    if not analysis.testable:
        return "\n".join([*parts, markdown_grid(_untested(analysis))])
    for heading, grid in (
        ("Planned", _planned(analysis)),
        ("New tasks like these", _new_tasks(analysis)),
        ("The planned contrasts task by task", _followups(analysis)),
    ):
        parts += [f"#### {heading}", "", markdown_grid(grid)] if grid else []
    return "\n".join([*parts, *_exploratory(analysis)]) + "\n"


def _untested(analysis: Analysis) -> list[GridRow]:
    """Runs instead of an interval: beside a handful of them it would be read as a test."""
    return [
        {
            "contrast": _name(row),
            "on": row.scope.name,
            "difference": points(value(row.measured.estimate)),
            "run by run": _runs(row.measured) or row.question.silent,
            "control": row.contrast.control or "-",
            "from control": points(value(row.to_control.estimate)) if row.to_control else "-",
        }
        for row in analysis.of("planned")
    ]


def _runs(measured: Measured) -> str:
    values = measured.by_seed
    return "" if values is None else ", ".join(points(float(value)) for value in values)


def _planned(analysis: Analysis) -> list[GridRow]:
    return [
        {
            "contrast": _name(row),
            "on": row.scope.name,
            "difference": interval(row.measured.estimate),
            "this test set": interval(row.measured.runs),
            "from control": interval(row.to_control.estimate) if row.to_control else "-",
            "control": row.contrast.control or "none exists",
            "p": p_text(row.answer.p),
            "p (Holm)": p_text(row.answer.p_adjusted),
            "p (this test set)": p_text(row.flip_p),
            "verdict": _verdict(row),
            "MDE": points(row.answer.mde, sign=False),
            "n": _size(row),
        }
        for row in analysis.of("planned")
    ]


def _new_tasks(analysis: Analysis) -> list[GridRow]:
    rows = [row for row in analysis.of("planned") if not row.question.silent]
    return [
        {
            "contrast": _name(row),
            "difference": interval(row.new_tasks.estimate),
            "p (Holm)": p_text(row.new_tasks.p_adjusted),
            "families": str(row.new_tasks.estimate.replicates) if row.new_tasks.estimate else "-",
            "note": row.new_tasks.reason,
        }
        for row in rows
    ]


def _followups(analysis: Analysis) -> list[GridRow]:
    return [
        {
            "contrast": _name(row),
            "task": row.scope.name,
            "difference": interval(row.measured.estimate),
            "this test set": interval(row.measured.runs),
            "p (Holm)": p_text(row.answer.p_adjusted),
            "verdict": _verdict(row),
            "MDE": points(row.answer.mde, sign=False),
            "n": _size(row),
        }
        for row in analysis.of("followup")
    ]


def _exploratory(analysis: Analysis) -> Iterator[str]:
    rows = analysis.of("exploratory")
    tested = [row for row in rows if row.answer.p is not None]
    if not tested:
        return
    found = [row for row in tested if row.answer.verdict != OPEN]
    yield "#### Exploratory\n"
    yield (
        f"{len(tested)} comparisons with {analysis.plan.baseline} that nobody planned "
        f"(Benjamini-Hochberg, 5 %): {len(found)} differ, marked {RING}. Hints for the next study, "
        "no verdicts; the others are in contrasts.csv.\n"
    )
    grid: list[GridRow] = [
        {
            "method": row.contrast.method,
            "on": row.scope.name,
            "difference": interval(row.measured.estimate),
            "q": p_text(row.answer.p_adjusted),
            "": f"{RING} {row.answer.verdict}",
        }
        for row in found
    ]
    if grid:
        yield markdown_grid(grid)


def _name(row: ContrastRow) -> str:
    return row.contrast.name or f"{row.contrast.method} - {row.contrast.baseline}"


def _verdict(row: ContrastRow) -> str:
    if row.question.silent:
        return f"no verdict: {row.question.silent}"
    if row.answer.verdict == "undecided":
        return f"undecided (MDE {points(row.answer.mde, sign=False)})"
    return row.answer.verdict


def _size(row: ContrastRow) -> str:
    return f"{len(row.measured.seeds)} x {row.measured.examples}" if not row.measured.gap else "-"
