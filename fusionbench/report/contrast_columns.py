"""The columns of `contrasts.csv`, and what other tables say of a method against the baseline.

Differences, intervals and MDE are shares (0.01 is one point); `scope` says whether a row is about
the suite, a group of tasks or one task, `name` which.
"""

import numpy as np

from fusionbench.report.analysis.analysis import Analysis
from fusionbench.report.analysis.rows import ContrastRow
from fusionbench.report.numbers import digits, precise
from fusionbench.report.tables import Row, conditions
from fusionbench.stats.estimate import Estimate


def measured_columns(row: ContrastRow | None) -> Row:
    """What `main.csv` says of a method against the baseline; empty for the baseline itself."""
    estimate = row.measured.estimate if row else None
    low, high = _ends(estimate)
    answer = row.answer if row else None
    return {
        "delta": digits(value(estimate)),
        "delta_low": digits(low),
        "delta_high": digits(high),
        "p": precise(answer.p if answer else None),
        "p_adjusted": precise(answer.p_adjusted if answer else None),
        "verdict": answer.verdict if answer else "",
        "mde": digits(answer.mde if answer else None),
        "kind": row.kind if row else "",
    }


def long_row(analysis: Analysis, row: ContrastRow) -> Row:
    """One row of `contrasts.csv`."""
    measured, answer = row.measured, row.answer
    low, high = _ends(measured.estimate)
    testset_low, testset_high = _ends(measured.runs)
    return {
        "scope": row.scope.level,
        "name": row.scope.name,
        "method": row.contrast.method,
        "baseline": row.contrast.baseline,
        "control": row.contrast.control,
        "delta": digits(value(measured.estimate)),
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
        "control_delta": digits(value(control.estimate if control else None)),
        "control_low": digits(control_low),
        "control_high": digits(control_high),
        "testset_p": precise(row.flip_p),
        "testset_smallest_p": precise(row.flips.smallest_p),
        "new_tasks_delta": digits(value(new.estimate)),
        "new_tasks_low": digits(new_low),
        "new_tasks_high": digits(new_high),
        "new_tasks_p_adjusted": precise(new.p_adjusted),
        "discordant_images": "" if measured.gap else str(measured.discordant),
        "reason": row.question.silent,
    }


def value(estimate: Estimate | None) -> float | None:
    """The difference, where something was measured."""
    return None if estimate is None else float(estimate.value)


def _ends(estimate: Estimate | None, alpha: float = 0.05) -> tuple[float | None, float | None]:
    if estimate is None:
        return None, None
    low, high = estimate.interval(alpha)
    return (float(low), float(high)) if np.isfinite(low) else (None, None)


def _p(estimate: Estimate | None) -> float | None:
    return float(estimate.p_value()) if estimate is not None and estimate.testable else None
