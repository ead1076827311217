"""`tables/main`: methods by tasks with intervals, the best in bold, the tied set shaded.

`main.csv` has one row for each method and task; `tables/summary` holds the suite.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fusionbench.report.analysis import Analysis
from fusionbench.report.contrast_rows import ContrastRow
from fusionbench.report.contrast_table import measured_columns
from fusionbench.report.contrasts import Scope
from fusionbench.report.metric_table import NOTE, metric_grid, metric_rows
from fusionbench.report.page import Page, same_function
from fusionbench.report.tables import (
    Entry,
    GridRow,
    Marked,
    Row,
    Summary,
    digits,
    latex_grid,
    long_row,
    markdown_grid,
    summary_long_rows,
)

DIRTY = "‡"
"""Beside a method whose records come from uncommitted code."""
_NOTES = {
    True: "Mean ± half of the 95 % interval for new runs and new images of the same kind. These "
    "intervals compare no two methods, since the pairing is lost: see the contrasts.",
    False: "Mean ± half of the 95 % t interval over runs, on these test images. With fewer than 4 "
    "runs no test is printed: no best method, no tied set, no verdict.",
}
_MARKS = (
    "**Bold**: the highest mean of the column. *Italic* (shaded in LaTeX and HTML): the tied set, "
    "which holds the truly best method of its column with at least 95 % probability. Not being in "
    "bold is no verdict. Size of the tied sets: {sizes}."
)
_SUITE = (
    "Means over tasks ({aggregates}) are of (score - chance) / (1 - chance), so that every task "
    "counts the same: 0 is guessing, 100 perfect."
)


def main_page(analyses: Sequence[Analysis]) -> Page:
    """Every condition: a table for each group of tasks, each with the suite's column first."""
    texts, latex, rows = [], [], list[Row]()
    for analysis in analyses:
        grids = list(_grids(analysis))
        texts.append(_text(analysis, grids))
        for group, grid in grids:
            condition = analysis.table.condition
            title = f"{condition.title}; tasks: {group or 'no group'}"
            latex.append(latex_grid(grid, title, f"main-{condition.encoder}-{group}"))
        rows += _long(analysis)
        if named := metric_grid(analysis):
            texts.append("\n".join([markdown_grid(named), NOTE]) + "\n")
            title = f"{analysis.table.condition.title}; named metrics"
            latex.append(latex_grid(named, title, f"metrics-{analysis.table.condition.encoder}"))
            rows += metric_rows(analysis, rows)
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(latex))


def _text(analysis: Analysis, grids: Sequence[tuple[str, list[GridRow]]]) -> str:
    table = analysis.table
    parts = [f"### {table.condition.title}", "", *same_function(table)]
    for group, grid in grids:
        parts += [f"Tasks: {group or 'no group'}", "", markdown_grid(grid)]
    return "\n".join([*parts, *_notes(analysis)]) + "\n"


def _notes(analysis: Analysis) -> Iterator[str]:
    images = any(one.images for one in analysis.cells.values())
    yield _NOTES[images]
    shown = ", ".join(f"`{scope.name}`" for scope in analysis.aggregates)
    yield _SUITE.format(aggregates=shown)
    tied = {scope.name: len(one.tied) for scope, one in analysis.columns.items() if one.tied}
    if tied:
        sizes = ", ".join(f"{name} {count}" for name, count in tied.items())
        yield _MARKS.format(sizes=sizes)
    if analysis.uncommitted:
        yield f"{DIRTY}: part of the records come from uncommitted code."
    table = analysis.table
    leaky = [name for row, name in enumerate(table.methods) if row in table.leaky]
    if leaky:
        yield f"{', '.join(leaky)}: sees the answers in training and enters no aggregate."


def _grids(analysis: Analysis) -> Iterator[tuple[str, list[GridRow]]]:
    """One table for each group of tasks, so that they fit a page."""
    groups = sorted({task.group for task in analysis.table.tasks})
    for group in groups:
        scopes = [
            scope
            for scope in analysis.scopes
            if scope.level == "suite"
            or (scope.level == "group" and scope.name == group)
            or (scope.level == "task" and analysis.table.tasks[scope.tasks[0]].group == group)
        ]
        yield group, _grid(analysis, scopes)


def _grid(analysis: Analysis, scopes: Sequence[Scope]) -> list[GridRow]:
    rows: list[GridRow] = []
    for method, name in enumerate(analysis.labels):
        mark = f" {DIRTY}" if method in analysis.uncommitted else ""
        row: dict[str, Entry] = {"method": name + mark}
        for scope in scopes:
            column = analysis.columns[scope]
            row[_title(scope)] = Marked(
                text=_summary(analysis, method, scope).text,
                best=method in column.best,
                tied=method in column.tied,
            )
        rows.append(row)
    return [*rows, _chance(analysis, scopes), _examples(analysis, scopes)]


def _title(scope: Scope) -> str:
    return scope.name if scope.level == "task" else f"{scope.name} ({_count(len(scope.tasks))})"


def _count(tasks: int) -> str:
    return "1 task" if tasks == 1 else f"{tasks} tasks"


def _summary(analysis: Analysis, method: int, scope: Scope) -> Summary:
    if scope.level == "task":
        return analysis.cells[method, scope.tasks[0]]
    return analysis.suite[method, scope]


def _chance(analysis: Analysis, scopes: Sequence[Scope]) -> GridRow:
    tasks = analysis.table.tasks
    levels = {
        _title(scope): f"{100 * tasks[scope.tasks[0]].chance:.1f}" if scope.level == "task" else "0"
        for scope in scopes
    }
    return {"method": "chance"} | levels


def _examples(analysis: Analysis, scopes: Sequence[Scope]) -> GridRow:
    tasks = analysis.table.tasks
    counts = {_title(one): str(sum(tasks[task].examples for task in one.tasks)) for one in scopes}
    return {"method": "test examples"} | counts


def _long(analysis: Analysis) -> Iterator[Row]:
    known = analysis.against_baseline()
    for method, name in enumerate(analysis.table.methods):
        for scope in analysis.scopes:
            if scope.level == "task":
                yield _long_row(analysis, method, scope, known.get((name, scope)))


def _long_row(analysis: Analysis, method: int, scope: Scope, row: ContrastRow | None) -> Row:
    found, task = analysis.cells[method, scope.tasks[0]], scope.tasks[0]
    column = analysis.columns[scope]
    plain = long_row(analysis.table, method, task, found)
    here = (run.provenance.get("code", {}) for run in analysis.table.runs(method, task))
    codes = {str(code.get("commit", "")) for code in here}
    far = analysis.outlying.get((method, task), ())
    return (
        plain
        | measured_columns(row)
        | {
            "interval": _interval(found),
            "best": str(method in column.best).lower() if column.tied else "",
            "tied": str(method in column.tied).lower() if column.tied else "",
            "seeds": _per_seed(analysis, method, task),
            "outlying_seeds": " ".join(map(str, far)),
            "code": " ".join(sorted(code[:7] for code in codes if code)),
            "uncommitted": str(method in analysis.uncommitted).lower(),
        }
    )


def _interval(found: Summary) -> str:
    if np.isnan(found.low):
        return ""
    return "runs and images" if found.images else "runs"


def _per_seed(analysis: Analysis, method: int, task: int) -> str:
    return " ".join(digits(float(value)) or "-" for value in analysis.table.values[method, task])


# `tables/summary.csv`: one row for each method and aggregate, with everything tested on it.
#
# `mean` is the plain mean over tasks, as in the Markdown table and on the terminal; `score` counts
# every task from chance (0) to perfect (1), and differences and tests are about it.


def suite_rows(analysis: Analysis) -> Iterator[Row]:
    """The rows of `summary_long_rows`, each with its chance-corrected score and difference."""
    known = analysis.against_baseline()
    scopes = {scope.name: scope for scope in analysis.aggregates}
    table = analysis.table
    plain = summary_long_rows(table)
    for index, row in enumerate(plain):
        method, scope = index // len(scopes), scopes[row["aggregate"]]
        found, column = analysis.suite[method, scope], analysis.columns[scope]
        yield (
            row
            | {
                "track": table.condition.track,
                "score": digits(found.mean),
                "score_low": digits(found.low),
                "score_high": digits(found.high),
            }
            | measured_columns(known.get((table.methods[method], scope)))
            | {
                "best": str(method in column.best).lower() if column.tied else "",
                "tied": str(method in column.tied).lower() if column.tied else "",
            }
        )
