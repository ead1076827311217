"""Named metrics of tasks beside their mean outcome: part of `tables/main`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis import Analysis
from fusionbench.report.tables import GridRow, Row, Summary, long_row, over_seeds
from fusionbench.stats.cells import metric_interval
from fusionbench.stats.estimate import FEWEST_REPLICATES

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
