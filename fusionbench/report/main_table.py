"""`tables/main` and `tables/planted`: methods by tasks, with named metrics and token counts.

`main` marks the best method of a column (bold) and its tied set (shaded).

Fewer tokens are easier to read where places matter, so such a method is marked and named with the
controls that hand over as many. The counts are those of the records; a method whose records have
none (they were written before counts were stored) gets no mark.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis import Analysis
from fusionbench.report.contrast_table import measured_columns
from fusionbench.report.contrasts import BASELINE, ContrastRow, Scope
from fusionbench.report.coverage import scored_alike
from fusionbench.report.leaderboard import marks
from fusionbench.report.page import Page
from fusionbench.report.tables import (
    Entry,
    GridRow,
    Marked,
    Row,
    Summary,
    cell,
    digits,
    latex_grid,
    long_row,
    markdown,
    names,
    over_seeds,
)
from fusionbench.stats.cells import metric_interval
from fusionbench.stats.estimate import FEWEST_REPLICATES

MARK = "§"
"""Follows the name of a method with another number of tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens of an image behind the projector, by method (row of a table)."""

    baseline: str
    """The method that the others are compared with; empty if its count is not recorded."""
    usual: int
    """Its tokens; 0 if they are not recorded."""
    by_method: Mapping[int, int]
    """Methods without a recorded count, and methods whose count varies, are left out."""

    @property
    def changed(self) -> Mapping[int, int]:
        """The methods with another number of tokens than the baseline."""
        return {row: count for row, count in self.by_method.items() if self.usual not in (0, count)}


def token_counts(table: ScoreTable, baseline: str) -> TokenCounts:
    """The counts of a table's records.

    Compared with `penultimate` where the table has its count, else with the study's baseline.
    """
    found = {row: count for row in range(len(table.methods)) if (count := _tokens(table, row))}
    by_name = {table.methods[row]: count for row, count in found.items()}
    reference = next((name for name in (BASELINE, baseline) if name in by_name), "")
    return TokenCounts(baseline=reference, usual=by_name.get(reference, 0), by_method=found)


def token_lines(table: ScoreTable, counts: TokenCounts) -> Iterator[str]:
    """The meaning of the mark, and a line for each number of tokens with its controls."""
    if not counts.changed:
        return
    yield (
        f"{MARK}: hands another number of tokens to the reader than `{counts.baseline}` "
        f"({counts.usual}). Fewer tokens are easier to read where places matter, and tokens that "
        "do not fill the encoder's grid have no coarse places: compare with a control of as many "
        "tokens."
    )
    controls = {record.control for record in table.cells.values()}
    for number in sorted(set(counts.changed.values())):
        rows = [row for row, count in counts.changed.items() if count == number]
        matched = [table.methods[row] for row in rows if table.methods[row] in controls]
        others = [table.methods[row] for row in rows if table.methods[row] not in controls]
        yield (
            f"- {number} tokens: {_listed(others) or 'no method'}; controls with as many: "
            f"{_listed(matched) or 'none here'}"
        )


def _tokens(table: ScoreTable, method: int) -> int:
    """The tokens of all runs of a method; 0 where a run has no count or another one."""
    found = {record.tokens for record in table.row(method) if record.status == "done"}
    return found.pop() if len(found) == 1 else 0


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


NOTE = (
    "Named metrics: mean ± half of the 95 % interval for new runs and new images of the same kind, "
    "by the jackknife over image groups; with fewer than 4 runs, the t interval over runs."
)


def named(table: ScoreTable) -> list[tuple[int, str]]:
    """(task, metric) for each metric that is not the headline metric of its task."""
    found = {
        (task, name)
        for (_, task, _), record in table.cells.items()
        for name in record.scores
        if name != record.metric
    }
    return sorted(found, key=lambda one: (table.tasks[one[0]].name, one[1]))


def metric_grid(analysis: Analysis) -> list[GridRow]:
    """A row for each method, a column for each named metric; empty without any."""
    columns = named(analysis.table)
    title = {one: f"{analysis.table.tasks[one[0]].name}: {one[1]}" for one in columns}
    return [
        {"method": label}
        | {title[one]: metric_summary(analysis.table, method, *one).text for one in columns}
        for method, label in enumerate(analysis.labels)
        if columns
    ]


def metric_rows(analysis: Analysis, like: Sequence[Row]) -> Iterator[Row]:
    """A row for each method and named metric, with the columns of the rows `like`."""
    table = analysis.table
    for task, name in named(table):
        for method in range(len(table.methods)):
            row = long_row(table, method, task, metric_summary(table, method, task, name))
            yield dict.fromkeys(like[0]) | row | {"metric": name, "chance": None}


def metric_summary(table: ScoreTable, method: int, task: int, name: str) -> Summary:
    """The metric of a method on a task, with its interval."""
    done = {one.spec.seed: one for one in table.runs(method, task) if name in one.scores}
    values = np.array([done[seed].scores[name] if seed in done else np.nan for seed in table.seeds])
    plain = over_seeds(values)
    left_out = _left_out(list(done.values()), name)
    if len(done) < FEWEST_REPLICATES or left_out is None:
        return plain
    found = metric_interval(values[~np.isnan(values)], left_out)
    return replace(plain, low=float(found.low), high=float(found.high), images=True)


def _left_out(done: Sequence[CellRecord], name: str) -> Float[np.ndarray, "seed block"] | None:
    """The values without each block; None if the runs were scored on different examples."""
    rows = [record.left_out.get(name, []) for record in done]
    same = len({record.items for record in done}) == 1 and len({len(row) for row in rows}) == 1
    return np.array(rows) if same and rows[0] else None


DIRTY = "‡"
"""Follows the name of a method whose records come from uncommitted code."""
IMPORTED = "¶"
"""Follows the name of a method with records that another program made."""
_NOTES = {
    True: "Mean ± half of the 95 % interval for new runs and new images of the same kind. These "
    "intervals compare no two methods, since the pairing is lost: see the contrasts.",
    False: "Mean ± half of the 95 % t interval over runs, on these test images. With fewer than 4 "
    "runs no test is printed: no best method, no tied set, no verdict.",
}
_MARKS = (
    "**Bold**: the highest mean of the column, of the methods that have the runs of `{baseline}`, "
    "in these runs. *Italic* (shaded in LaTeX and HTML): the tied set, which holds the truly best "
    "of these methods with at least 95 % probability. Not being in bold is no verdict. Size of the "
    "tied sets: {sizes}."
)
_SUITE = (
    "Means over tasks ({aggregates}) are of (score - chance) / (1 - chance), so that every task "
    "counts the same: 0 is guessing, 100 perfect."
)


@dataclass(frozen=True, kw_only=True)
class GridColumn:
    """One column of the Markdown and LaTeX table of scores."""

    title: str
    entries: Sequence[Entry]
    """One for each method."""
    chance: str
    examples: int


def main_page(analyses: Sequence[Analysis]) -> Page:
    """Every condition: a table for each group of tasks, the means over tasks first."""
    texts, latex, rows = [], [], list[Row]()
    for analysis in analyses:
        table = analysis.table
        grids = {group: _grid(analysis, group) for group in _groups(table)}
        texts.append("\n".join([_grouped(table, grids), *_notes(analysis)]) + "\n")
        for group, grid in grids.items():
            title = f"{table.condition.title}; tasks: {group or 'no group'}"
            latex.append(latex_grid(grid, title, f"main-{table.condition.label}-{group}"))
        rows += _long(analysis)
        if named := metric_grid(analysis):
            texts.append("\n".join([markdown(named), NOTE]) + "\n")
            title = f"{analysis.table.condition.title}; named metrics"
            latex.append(latex_grid(named, title, f"metrics-{analysis.table.condition.label}"))
            rows += metric_rows(analysis, rows)
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(latex))


def planted_page(tables: Sequence[ScoreTable]) -> Page:
    """Scores on tasks with a known right answer, without marks."""
    texts, rows = [], list[Row]()
    for table in tables:
        cells = {
            (method, task): cell(table, method, task)
            for method in range(len(table.methods))
            for task in range(len(table.tasks))
        }
        grids = {
            group: _rows(
                names(table),
                [
                    _task_column(
                        table, task, [cells[row, task].text for row in range(len(table.methods))]
                    )
                    for task, facts in enumerate(table.tasks)
                    if facts.group == group
                ],
            )
            for group in _groups(table)
        }
        texts.append(_grouped(table, grids))
        rows += [long_row(table, method, task, cells[method, task]) for method, task in cells]
    return Page(markdown="\n".join(texts), rows=rows)


def _groups(table: ScoreTable) -> list[str]:
    return sorted({task.group for task in table.tasks})


def _grouped(table: ScoreTable, grids: Mapping[str, Sequence[GridRow]]) -> str:
    """The tables of one condition, one for each group of tasks so that they fit a page."""
    parts = [f"### {table.condition.title}", "", *scored_alike(table)]
    for group, grid in grids.items():
        parts += [f"Tasks: {group or 'no group'}", "", markdown(grid)]
    return "\n".join(parts)


def _notes(analysis: Analysis) -> Iterator[str]:
    images = any(one.images for one in analysis.cells.values())
    yield _NOTES[images]
    shown = ", ".join(f"`{scope.name}`" for scope in analysis.aggregates)
    yield _SUITE.format(aggregates=shown)
    tied = {scope.name: len(one.tied) for scope, one in analysis.columns.items() if one.tied}
    if tied:
        sizes = ", ".join(f"{name} {count}" for name, count in tied.items())
        yield _MARKS.format(sizes=sizes, baseline=analysis.plan.baseline)
    if analysis.uncommitted:
        yield f"{DIRTY}: part of the records come from uncommitted code."
    table = analysis.table
    if sources := sorted({one.source for one in table.cells.values() if one.source}):
        yield f"{IMPORTED}: imported from {', '.join(sources)}."
    leaky = [name for row, name in enumerate(table.methods) if row in table.leaky]
    if leaky:
        yield f"{', '.join(leaky)}: sees the answers in training and enters no aggregate."
    yield from token_lines(table, token_counts(table, analysis.plan.baseline))


def _grid(analysis: Analysis, group: str) -> list[GridRow]:
    """Methods by the suite, the group and the group's tasks."""
    tasks = analysis.table.tasks
    columns = []
    for scope in analysis.scopes:
        own = tasks[scope.tasks[0]].group if scope.level == "task" else scope.name
        if scope.level == "suite" or own == group:
            columns.append(_scope_column(analysis, scope))
    return _rows(_marked_labels(analysis), columns)


def _marked_labels(analysis: Analysis) -> list[str]:
    """Names of methods with their marks."""
    changed = token_counts(analysis.table, analysis.plan.baseline).changed
    imported = {row for (row, _, _), one in analysis.table.cells.items() if one.source}
    marks = {DIRTY: analysis.uncommitted, IMPORTED: imported, MARK: changed}
    return [
        " ".join([name, *(mark for mark, rows in marks.items() if method in rows)])
        for method, name in enumerate(analysis.labels)
    ]


def _scope_column(analysis: Analysis, scope: Scope) -> GridColumn:
    column = analysis.columns[scope]
    methods, aggregate = range(len(analysis.labels)), scope.level != "task"
    entries = [
        Marked(
            text=_summary(analysis, row, scope).text,
            best=row in column.best,
            tied=row in column.tied,
        )
        for row in methods
    ]
    if not aggregate:
        return _task_column(analysis.table, scope.tasks[0], entries)
    return GridColumn(
        title=f"{scope.name} ({_count(len(scope.tasks))})",
        entries=entries,
        chance="0",
        examples=sum(analysis.table.tasks[task].examples for task in scope.tasks),
    )


def _summary(analysis: Analysis, method: int, scope: Scope) -> Summary:
    if scope.level == "task":
        return analysis.cells[method, scope.tasks[0]]
    return analysis.suite[method, scope]


def _task_column(table: ScoreTable, task: int, entries: Sequence[Entry]) -> GridColumn:
    facts = table.tasks[task]
    chance = f"{100 * facts.chance:.1f}"
    return GridColumn(title=facts.name, entries=entries, chance=chance, examples=facts.examples)


def _rows(labels: Sequence[str], columns: Sequence[GridColumn]) -> list[GridRow]:
    """A row for each method, then the chance level and the number of test examples."""
    rows: list[GridRow] = [
        {"method": name} | {one.title: one.entries[row] for one in columns}
        for row, name in enumerate(labels)
    ]
    chance = {one.title: one.chance for one in columns}
    examples = {one.title: one.examples for one in columns}
    return [*rows, {"method": "chance", **chance}, {"method": "test examples", **examples}]


def _count(tasks: int) -> str:
    return "1 task" if tasks == 1 else f"{tasks} tasks"


def _long(analysis: Analysis) -> Iterator[Row]:
    known = analysis.against_baseline()
    scopes = [scope for scope in analysis.scopes if scope.level == "task"]
    tokens = token_counts(analysis.table, analysis.plan.baseline).by_method
    for method, name in enumerate(analysis.table.methods):
        for scope in scopes:
            compared = known.get((name, scope))
            yield _long_row(analysis, method, scope, compared, tokens.get(method))


def _long_row(
    analysis: Analysis, method: int, scope: Scope, row: ContrastRow | None, tokens: int | None
) -> Row:
    table, task = analysis.table, scope.tasks[0]
    found = analysis.cells[method, task]
    here = (run.provenance.get("code", {}) for run in table.runs(method, task))
    codes = {str(code.get("commit", "")) for code in here}
    over = "runs and images" if found.images else "runs"
    seeds = (digits("mean", float(value)) or "-" for value in table.values[method, task])
    return {
        **long_row(table, method, task, found),
        **measured_columns(row),
        "interval": "" if np.isnan(found.low) else over,
        **marks(analysis, scope, method),
        "seeds": " ".join(seeds),
        "outlying_seeds": " ".join(map(str, analysis.outlying.get((method, task), ()))),
        "tokens": tokens,
        "code": " ".join(sorted(code[:7] for code in codes if code)),
        "uncommitted": method in analysis.uncommitted,
    }
