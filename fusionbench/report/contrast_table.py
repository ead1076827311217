"""`tables/contrasts`: what was planned and its verdicts, task by task, and everything else.

In `contrasts.csv` differences, intervals and MDE are shares (0.01 is one point); `scope` says
whether a row is about the suite, a group of tasks or one task, `name` which.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fusionbench.report.analysis import Analysis, ContrastRow
from fusionbench.report.analysis.families import OPEN
from fusionbench.report.analysis.measure import Measured
from fusionbench.report.contrast_notes import notes
from fusionbench.report.grid import GridRow, latex_grid, markdown_grid
from fusionbench.report.numbers import digits, interval, p_text, points, precise
from fusionbench.report.sections import Page
from fusionbench.report.tables import Row, conditions
from fusionbench.stats import Estimate

RING = "○"
"""Marks an exploratory comparison that Benjamini-Hochberg lets through; no star."""


def contrast_page(analyses: Sequence[Analysis]) -> Page:
    """All comparisons of all conditions."""
    rows = [_long(analysis, row) for analysis in analyses for row in analysis.rows]
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


def measured_columns(row: ContrastRow | None) -> Row:
    """What `main.csv` says of a method against the baseline; empty for the baseline itself."""
    estimate = row.measured.estimate if row else None
    low, high = _ends(estimate)
    answer = row.answer if row else None
    return {
        "delta": digits(_value(estimate)),
        "delta_low": digits(low),
        "delta_high": digits(high),
        "p": precise(answer.p if answer else None),
        "p_adjusted": precise(answer.p_adjusted if answer else None),
        "verdict": answer.verdict if answer else "",
        "mde": digits(answer.mde if answer else None),
        "kind": row.kind if row else "",
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
            "difference": points(_value(row.measured.estimate)),
            "run by run": _runs(row.measured) or row.question.silent,
            "control": row.contrast.control or "-",
            "from control": points(_value(row.to_control.estimate)) if row.to_control else "-",
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


def _long(analysis: Analysis, row: ContrastRow) -> Row:
    measured, answer = row.measured, row.answer
    low, high = _ends(measured.estimate)
    testset_low, testset_high = _ends(measured.runs)
    return {
        "scope": row.scope.level,
        "name": row.scope.name,
        "method": row.contrast.method,
        "baseline": row.contrast.baseline,
        "control": row.contrast.control,
        "delta": digits(_value(measured.estimate)),
        "low": digits(low),
        "high": digits(high),
        "testset_low": digits(testset_low),
        "testset_high": digits(testset_high),
        "p": precise(answer.p),
        "p_adjusted": precise(answer.p_adjusted),
        "verdict": answer.verdict,
        "mde": digits(answer.mde),
        "n_seeds": str(len(measured.seeds)),
        "n_examples": str(measured.examples),
        "kind": row.kind,
        **conditions(analysis.table),
        **_more(row),
    }


def _more(row: ContrastRow) -> Row:
    """What stands behind the first columns: the variance, the control, the other claims."""
    measured, control, new = row.measured, row.to_control, row.new_tasks
    low, high = _ends(measured.estimate, row.simultaneous)
    control_low, control_high = _ends(control.estimate if control else None)
    new_low, new_high = _ends(new.estimate)
    return {
        "contrast": row.contrast.name,
        "family": str(row.family),
        "margin": digits(row.margin),
        "se": precise(float(measured.estimate.se) if measured.estimate else None),
        "nu": precise(float(measured.estimate.nu) if measured.estimate else None),
        "p_baseline": precise(_p(measured.estimate)),
        "p_control": precise(_p(control.estimate) if control else None),
        "p_equivalent": precise(row.answer.p_equivalent),
        "p_equivalent_adjusted": precise(row.answer.p_equivalent_adjusted),
        "mde_alone": digits(row.answer.mde_alone),
        "simultaneous_low": digits(low),
        "simultaneous_high": digits(high),
        "control_delta": digits(_value(control.estimate if control else None)),
        "control_low": digits(control_low),
        "control_high": digits(control_high),
        "testset_p": precise(row.flip_p),
        "testset_smallest_p": precise(row.flips.smallest_p),
        "new_tasks_delta": digits(_value(new.estimate)),
        "new_tasks_low": digits(new_low),
        "new_tasks_high": digits(new_high),
        "new_tasks_p_adjusted": precise(new.p_adjusted),
        "discordant_images": "" if measured.gap else str(measured.discordant),
        "reason": row.question.silent,
    }


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else float(estimate.value)


def _ends(estimate: Estimate | None, alpha: float = 0.05) -> tuple[float | None, float | None]:
    if estimate is None:
        return None, None
    low, high = estimate.interval(alpha)
    return (float(low), float(high)) if np.isfinite(low) else (None, None)


def _p(estimate: Estimate | None) -> float | None:
    return float(estimate.p_value()) if estimate is not None and estimate.testable else None
