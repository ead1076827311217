"""`tables/contrasts`: planned contrasts with verdicts, task by task, and exploratory ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fusionbench.records.pairs import Measured
from fusionbench.report.analysis import Analysis
from fusionbench.report.contrasts import OPEN, ContrastRow
from fusionbench.report.page import Page
from fusionbench.report.tables import (
    GridRow,
    Row,
    conditions,
    effect_text,
    interval,
    latex_grid,
    markdown,
    p_text,
    points,
)
from fusionbench.stats.crossed import FEW_DISCORDANT
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate


def measured_columns(row: ContrastRow | None) -> Row:
    """A method against the baseline, as shares; empty for the baseline itself."""
    estimate, answer = (row.measured.estimate, row.answer) if row else (None, None)
    return {
        **_estimate("delta", estimate, low="delta_low", high="delta_high"),
        "p": answer and answer.p,
        "p_adjusted": answer and answer.p_adjusted,
        "verdict": answer.verdict if answer else "",
        "mde": answer and answer.mde,
        "kind": row.kind if row else "",
    }


def long_row(analysis: Analysis, row: ContrastRow) -> Row:
    """One row of `contrasts.csv`.

    Differences, intervals and MDE are shares (0.01 is one point); `scope` is `suite`, `group` or
    `task`, `name` the group or task.
    """
    measured, answer = row.measured, row.answer
    estimate, testset = measured.estimate, _ends(measured.runs)
    return {
        "scope": row.scope.level,
        "name": row.scope.name,
        "method": row.contrast.method,
        "baseline": row.contrast.baseline,
        "control": row.contrast.control,
        **_estimate("delta", estimate, low="low", high="high"),
        "testset_low": testset[0],
        "testset_high": testset[1],
        "p": answer.p,
        "p_adjusted": answer.p_adjusted,
        "verdict": answer.verdict,
        "mde": answer.mde,
        "n_seeds": len(measured.seeds),
        "n_examples": measured.examples,
        "kind": row.kind,
        **conditions(analysis.table),
        **_technical(row),
    }


def _technical(row: ContrastRow) -> Row:
    """The columns behind the verdict: correction group, standard errors, single p-values."""
    measured, answer, control, new = row.measured, row.answer, row.to_control, row.new_tasks
    estimate = measured.estimate
    simultaneous = _ends(estimate, row.simultaneous)
    return {
        "contrast": row.contrast.name,
        "family": row.family,
        "margin": row.margin,
        "se": float(estimate.se) if estimate else None,
        "nu": float(estimate.nu) if estimate else None,
        "p_baseline": _p(estimate),
        "p_control": _p(control.estimate) if control else None,
        "p_equivalent": answer.p_equivalent,
        "p_equivalent_adjusted": answer.p_equivalent_adjusted,
        "mde_alone": answer.mde_alone,
        "simultaneous_low": simultaneous[0],
        "simultaneous_high": simultaneous[1],
        **_estimate(
            "control_delta",
            control.estimate if control else None,
            low="control_low",
            high="control_high",
        ),
        "testset_p": row.flip_p,
        "testset_smallest_p": row.flips.smallest_p,
        **_estimate("new_tasks_delta", new.estimate, low="new_tasks_low", high="new_tasks_high"),
        "new_tasks_p_adjusted": new.p_adjusted,
        "discordant_images": None if measured.gap else measured.discordant,
        "reason": row.question.silent,
    }


def _estimate(name: str, estimate: Estimate | None, *, low: str, high: str) -> Row:
    """A difference and the ends of its 95 % interval, under these column names."""
    ends = _ends(estimate)
    return {name: value(estimate), low: ends[0], high: ends[1]}


def value(estimate: Estimate | None) -> float | None:
    """The difference; None where nothing was measured."""
    return None if estimate is None else float(estimate.value)


def _ends(estimate: Estimate | None, alpha: float = 0.05) -> tuple[float | None, float | None]:
    if estimate is None:
        return None, None
    low, high = estimate.interval(alpha)
    return (float(low), float(high)) if np.isfinite(low) else (None, None)


def _p(estimate: Estimate | None) -> float | None:
    return float(estimate.p_value()) if estimate is not None and estimate.testable else None


_CLAIM = (
    "Differences are method minus {baseline}, in points, with 95 % intervals for new runs and new "
    "images of the same kind (crossed t); on the suite every task counts the same from chance (0) "
    "to perfect (100). `this test set`: intervals for new runs on the same images."
)
INTERVALS = (
    "Two kinds of interval: the one on which verdicts rest is for new runs and new images; that of "
    "this test set is for new runs alone. The second claims less and can still be wider: its "
    "degrees of freedom are the number of runs less one, while the first also counts images."
)
_VERDICTS = (
    "A method is called better or worse only if it differs both from {baseline} and from its "
    "matched control (p is the larger of the two), Holm over {count} planned contrasts at 5 %. "
    "Equivalent: within ±{suite} points on the suite, ±{task} on a task (two one-sided tests, Holm "
    "again). Undecided: an effect below the MDE would have been missed more than 1 time in 5."
)


def notes(analysis: Analysis) -> Iterator[str]:
    """One paragraph each."""
    plan, planned = analysis.plan, analysis.of("planned")
    yield from (f"{note}\n" for note in plan.notes)
    if plan.baseline not in analysis.table.methods:
        yield f"The baseline {plan.baseline} was not run here: nothing is compared.\n"
        return
    yield _CLAIM.format(baseline=plan.baseline) + "\n"
    if not analysis.testable:
        yield _untestable(analysis) + "\n"
        return
    if planned:
        yield _VERDICTS.format(
            baseline=plan.baseline,
            count=len(planned),
            suite=points(plan.suite_margin, sign=False),
            task=points(plan.task_margin, sign=False),
        ) + "\n"  # fmt: skip
        yield INTERVALS + "\n"
        yield from _flips(planned[0])
    yield from _few(analysis)


def _untestable(analysis: Analysis) -> str:
    seeds = len(analysis.table.seeds)
    if seeds < FEWEST_REPLICATES:
        runs = "1 run" if seeds == 1 else f"{seeds} runs"
        return (
            f"No test is printed and no verdict is given: {runs} per cell, and below "
            f"{FEWEST_REPLICATES} runs no p-value is reliable. The table shows the single runs, "
            "contrasts.csv the intervals."
        )
    return "No test is printed: no two methods share enough runs."


def _flips(row: ContrastRow) -> Iterator[str]:
    flips = row.flips
    if flips.smallest_p is None:
        return
    cannot = "" if flips.smallest_p <= 0.05 else ", so that nothing can reach 0.05"
    yield (
        f"p (this test set): joint sign flips of {flips.seeds} runs, step-down max-T over all "
        f"planned contrasts; its smallest possible value is {p_text(flips.smallest_p)}{cannot}.\n"
    )


def _few(analysis: Analysis) -> Iterator[str]:
    rows = [row for row in analysis.of("followup") if not row.question.silent]
    few = [row for row in rows if row.measured.discordant < FEW_DISCORDANT]
    if few:
        shown = ", ".join(
            f"{row.contrast.method} on {row.scope.name} ({row.measured.discordant})" for row in few
        )
        yield f"Too few images on which the two differ: {shown}.\n"


RING = "○"
"""Marks an exploratory difference after Benjamini-Hochberg; not a verdict."""


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
            latex.append(latex_grid(grid, caption, f"{kind}-{analysis.table.condition.label}"))
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
        return "\n".join([*parts, markdown(_untested(analysis))])
    for heading, grid in (
        ("Planned", _planned(analysis)),
        ("New tasks like these", _new_tasks(analysis)),
        ("The planned contrasts task by task", _followups(analysis)),
    ):
        parts += [f"#### {heading}", "", markdown(grid)] if grid else []
    return "\n".join([*parts, *_exploratory(analysis)]) + "\n"


def _untested(analysis: Analysis) -> list[GridRow]:
    """Single runs instead of an interval, which would be read as a test."""
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


_COLUMNS: Mapping[str, Callable[[ContrastRow], str]] = {
    "contrast": lambda row: _name(row),
    "on": lambda row: row.scope.name,
    "task": lambda row: row.scope.name,
    "difference": lambda row: interval(row.measured.estimate),
    "this test set": lambda row: interval(row.measured.runs),
    "from control": lambda row: interval(row.to_control.estimate) if row.to_control else "-",
    "control": lambda row: row.contrast.control or ("-" if row.measured.gap else "none exists"),
    "p": lambda row: p_text(row.answer.p),
    "p (Holm)": lambda row: p_text(row.answer.p_adjusted),
    "p (this test set)": lambda row: p_text(row.flip_p),
    "verdict": lambda row: _verdict(row),
    "MDE": lambda row: effect_text(row.answer.mde),
    "n": lambda row: _size(row),
}
_PLANNED = [name for name in _COLUMNS if name != "task"]
_FOLLOWUP = ["contrast", "task", "difference", "this test set", "p (Holm)", "verdict", "MDE", "n"]


def _tested(analysis: Analysis, kind: str, columns: Sequence[str]) -> list[GridRow]:
    return [{name: _COLUMNS[name](row) for name in columns} for row in analysis.of(kind)]


def _planned(analysis: Analysis) -> list[GridRow]:
    return _tested(analysis, "planned", _PLANNED)


def _followups(analysis: Analysis) -> list[GridRow]:
    return _tested(analysis, "followup", _FOLLOWUP)


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
        yield markdown(grid)


def _name(row: ContrastRow) -> str:
    return row.contrast.name or f"{row.contrast.method} - {row.contrast.baseline}"


def _verdict(row: ContrastRow) -> str:
    if row.question.silent:
        return f"no verdict: {row.question.silent}"
    if row.answer.verdict == "undecided":
        return f"undecided (MDE {effect_text(row.answer.mde)})"
    return row.answer.verdict


def _size(row: ContrastRow) -> str:
    return f"{len(row.measured.seeds)} x {row.measured.examples}" if not row.measured.gap else "-"
