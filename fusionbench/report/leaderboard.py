"""`tables/summary`: methods by their mean over the suite, with the difference from the baseline.

Means count every task the same, from chance (0) to all right (100), as differences do.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis import Analysis
from fusionbench.report.contrast_table import measured_columns
from fusionbench.report.contrasts import ContrastRow, Scope
from fusionbench.report.page import Page
from fusionbench.report.tables import (
    GridRow,
    Row,
    across,
    aggregates,
    conditions,
    interval,
    latex_grid,
    markdown,
)

_NOTE = """\
Sorted by the mean over the suite. Means count every task the same, from chance (0) to all right
(100), ± half of the 95 % interval. *Difference*: method minus {baseline}, in points, with its 95 %
interval; a verdict needs the contrasts. *Added*: trained parameters beyond the whole model of
{baseline}."""


def leaderboard_page(analyses: Sequence[Analysis]) -> Page:
    """One row for each method, the highest mean first."""
    texts, latex = [], []
    for analysis in analyses:
        title, grid = analysis.table.condition.title, leaderboard(analysis)
        note = _NOTE.format(baseline=analysis.plan.baseline)
        texts.append(f"### {title}\n\n{markdown(grid)}\n{note}\n")
        label = f"summary-{analysis.table.condition.label}"
        latex.append(latex_grid(grid, f"Means over tasks; {title}", label))
    return Page(
        markdown="\n".join(texts),
        rows=[row for analysis in analyses for row in _long(analysis)],
        latex="\n".join(latex),
    )


def leaderboard(analysis: Analysis) -> list[GridRow]:
    """The rows of the table, in the order of the means."""
    suite = analysis.scopes[0]
    known = analysis.against_baseline()
    return [
        {"method": _label(analysis, row)}
        | {_title(scope): analysis.suite[row, scope].text for scope in analysis.aggregates[:1]}
        | {"difference": _difference(analysis, row, suite, known)}
        | {_title(scope): analysis.suite[row, scope].text for scope in analysis.aggregates[1:]}
        | {"added": added_parameters(analysis, row) or "-"}
        for row in ranked(analysis, suite, everything=True)
    ]


def ranked(analysis: Analysis, scope: Scope, *, everything: bool = False) -> list[int]:
    """Methods by their mean, highest first; with `everything` those without a mean at the end."""
    rows = range(len(analysis.table.methods))
    means = {row: analysis.suite[row, scope].mean for row in rows}
    known = [row for row in rows if not np.isnan(means[row])]
    without = [row for row in rows if np.isnan(means[row])]
    ordered = sorted(known, key=lambda row: (-means[row], analysis.table.methods[row]))
    return ordered + (without if everything else [])


_PARTS = ("fusion", "projector", "reader")
_ITSELF = "none: it is a control"
"""How a card gives the control of a method that is one, whatever was run beside it."""


def added_parameters(analysis: Analysis, method: int) -> str:
    """Trained parameters beyond the baseline's whole model: `1,024`, or `980 to 1,024` over tasks.

    Empty where the baseline or the method was not run.
    """
    parts = added_parts(analysis, method)
    return added_text([sum(task) for task in zip(*parts.values(), strict=True)])


def added_parts(analysis: Analysis, method: int) -> dict[str, list[int]]:
    """The same, part by part: fusion, projector and reader, one number for each task.

    Empty where the baseline or the method was not run.
    """
    table, baseline = analysis.table, analysis.plan.baseline
    if baseline not in table.methods:
        return {}
    own, reference = (_trained(table, row) for row in (method, table.methods.index(baseline)))
    shared = sorted(own.keys() & reference.keys())
    found = {
        part: [own[task].get(part, 0) - reference[task].get(part, 0) for task in shared]
        for part in _PARTS
    }
    return found if shared else {}


def added_text(values: Sequence[int]) -> str:
    """`1,024`, or `980 to 1,024` where tasks differ."""
    ends = sorted(set(values))
    return " to ".join(f"{value:,}" for value in dict.fromkeys((*ends[:1], *ends[-1:])))


def _trained(table: ScoreTable, method: int) -> dict[int, Mapping[str, int]]:
    """The parameters of each part, by task."""
    found = {}
    for task in range(len(table.tasks)):
        done = [run for run in table.runs(method, task) if run.status == "done"]
        if done:
            found[task] = done[0].parameters
    return found


def _label(analysis: Analysis, row: int) -> str:
    """The display name, with a mark for the baseline and for controls."""
    name, mark = analysis.labels[row], role(analysis, row)
    return f"{name} ({mark})" if mark else name


def role(analysis: Analysis, row: int) -> str:
    """`baseline`; `control`, of another method or by its own card; or empty."""
    name, controls = analysis.table.methods[row], analysis.table.controls
    if name == analysis.plan.baseline:
        return "baseline"
    return "control" if name in controls or controls[row].startswith(_ITSELF) else ""


def _title(scope: Scope) -> str:
    count = len(scope.tasks)
    return f"{scope.name} ({count} task{'s' if count != 1 else ''})"


def _difference(
    analysis: Analysis, row: int, scope: Scope, known: Mapping[tuple[str, Scope], ContrastRow]
) -> str:
    found = known.get((analysis.table.methods[row], scope))
    return interval(found.measured.estimate) if found else "-"


def _long(analysis: Analysis) -> Iterator[Row]:
    """One row for each method and aggregate: plain mean, chance-corrected score, difference."""
    table, known = analysis.table, analysis.against_baseline()
    scopes = {scope.name: scope for scope in analysis.aggregates}
    facts = conditions(table)
    track = facts.pop("track")
    for method in ranked(analysis, analysis.scopes[0], everything=True):
        for title, keep in aggregates(table):
            scope, plain = scopes[title], across(table, method, keep)
            found = analysis.suite[method, scope]
            yield {
                **facts,
                "method": analysis.labels[method],
                "role": role(analysis, method),
                "aggregate": title,
                "n_tasks": int(keep.sum()),
                **plain.columns,
                "text": found.text,
                "fusion": fusion_size(table, method),
                "added": added_parameters(analysis, method),
                "track": track,
                "score": found.mean,
                "score_low": found.low,
                "score_high": found.high,
                **measured_columns(known.get((table.methods[method], scope))),
                **marks(analysis, scope, method),
            }


def marks(analysis: Analysis, scope: Scope, method: int) -> Row:
    """`best` and `tied`; None where no tied set was computed."""
    column = analysis.columns[scope]
    known = bool(column.tied)
    return {
        "best": method in column.best if known else None,
        "tied": method in column.tied if known else None,
    }


def fusion_size(table: ScoreTable, method: int) -> str:
    """Parameters of the fusion over all tasks: `1,024`, or `980-1,024` where tasks differ."""
    records = table.row(method)
    counts = [one.parameters.get("fusion", 0) for one in records if one.status == "done"]
    ends = sorted({min(counts), max(counts)}) if counts else []
    return "-".join(f"{count:,}" for count in ends) or "-"
