"""What must be said above the contrasts: the claim, the family, and what this study cannot show."""

from collections.abc import Iterator

from fusionbench.report.analysis.analysis import Analysis
from fusionbench.report.analysis.rows import ContrastRow
from fusionbench.report.numbers import p_text, points
from fusionbench.stats.crossed import FEW_DISCORDANT
from fusionbench.stats.estimate import FEWEST_REPLICATES

_CLAIM = (
    "Differences are method minus {baseline}, in points, with 95 % intervals for new runs and new "
    "images of the same kind (crossed t); on the suite every task counts the same from chance (0) "
    "to perfect (100). `this test set` speaks of new runs on these very images."
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
        yield from _flips(planned[0])
    yield from _few(analysis)


def _untestable(analysis: Analysis) -> str:
    seeds = len(analysis.table.seeds)
    if seeds < FEWEST_REPLICATES:
        runs = "1 run" if seeds == 1 else f"{seeds} runs"
        return (
            f"No test is printed and no verdict is given: {runs} per cell, and below "
            f"{FEWEST_REPLICATES} a p-value would be decoration. The runs themselves are shown; "
            "intervals stand in contrasts.csv."
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
