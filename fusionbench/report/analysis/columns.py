"""The best method of a column, and the set of methods that may be it: bold and shaded.

A column is a task, a group or the suite. Methods enter with the same runs on the same examples;
one that lacks a run, or that reads the answers, is not compared and is neither bold nor shaded.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusionbench.records.cell import CellRecord
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis.measure import Scope, weights_of
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.tied import shared_run_suite_pairs, suite_pairs, task_pairs, tied_set

Runs = frozenset[tuple[int, str]]
"""Seeds and the file of examples that each was scored on."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Rows of the table by what may be said of them in one column."""

    best: frozenset[int] = frozenset()
    """The highest mean among the compared; several if they are exactly equal."""
    tied: frozenset[int] = frozenset()
    """Holds the truly best of the compared with at least 95 % probability."""
    compared: tuple[int, ...] = ()
    seeds: int = 0


def column(results: Results, table: ScoreTable, scope: Scope, baseline: str) -> Column:
    """Best and tied of one column; empty below four runs or two methods."""
    keys = {
        row: _runs(table, row, scope) for row in range(len(table.methods)) if row not in table.leaky
    }
    wanted = _wanted(table, keys, baseline)
    rows = [row for row, key in keys.items() if wanted and wanted <= key]
    seeds = sorted({seed for seed, _ in wanted})
    if len(rows) < 2 or len(seeds) < FEWEST_REPLICATES:
        return Column(compared=tuple(rows), seeds=len(seeds))
    weights = weights_of(table, scope)
    tasks = [
        _scores(results, table, rows, task, seeds, float(weight))
        for task, weight in zip(scope.tasks, weights, strict=True)
    ]
    pairs = _pairs(table, rows, scope)(tasks)
    means = np.sum([task.weight * task.table.mean(axis=(-2, -1)) for task in tasks], axis=0)
    return Column(
        best=frozenset(np.asarray(rows)[np.isclose(means, means.max(), rtol=0, atol=1e-12)]),
        tied=frozenset(np.asarray(rows)[tied_set(pairs)]),
        compared=tuple(rows),
        seeds=len(seeds),
    )


def _runs(table: ScoreTable, method: int, scope: Scope) -> Runs:
    """Seeds that the method has on every task of the scope, each with its examples' files."""
    found: list[dict[int, str]] = []
    for task in scope.tasks:
        done = [one for one in table.runs(method, task) if one.status == "done" and one.outcomes]
        found.append({one.spec.seed: one.items for one in done})
    shared = set.intersection(*(set(one) for one in found))
    return frozenset((seed, " ".join(one[seed] for one in found)) for seed in shared)


def _wanted(table: ScoreTable, keys: dict[int, Runs], baseline: str) -> Runs:
    """The baseline's runs; where it has none, those that most methods have."""
    if baseline in table.methods and keys.get(table.methods.index(baseline)):
        return keys[table.methods.index(baseline)]
    counts = Counter(key for key in keys.values() if key)
    ranked = sorted(counts, key=lambda key: (-counts[key], -len(key), sorted(key)))
    return ranked[0] if ranked else frozenset()


def _pairs(
    table: ScoreTable, rows: Sequence[int], scope: Scope
) -> Callable[[Sequence[TaskScores]], Estimate]:
    if len(scope.tasks) == 1:
        return lambda tasks: task_pairs(tasks[0])
    cells = (run for task in scope.tasks for row in rows for run in table.runs(row, task))
    shared = {run.seed_scope for run in cells if run.status == "done"}
    return shared_run_suite_pairs if shared == {"suite"} else suite_pairs


def _scores(  # noqa: PLR0913  (a block of the table and where it comes from)
    results: Results,
    table: ScoreTable,
    rows: Sequence[int],
    task: int,
    seeds: Sequence[int],
    weight: float,
) -> TaskScores:
    cells = [_cells(table, row, task, seeds) for row in rows]
    values = np.stack([[results.outcomes(cell) for cell in row] for row in cells])
    # Booleans stay booleans: every two methods are compared answer by answer.
    return TaskScores(values=values, groups=results.images(cells[0][0]), weight=weight)


def _cells(table: ScoreTable, row: int, task: int, seeds: Sequence[int]) -> list[CellRecord]:
    by_seed = {one.spec.seed: one for one in table.runs(row, task) if one.status == "done"}
    return [by_seed[seed] for seed in seeds]
