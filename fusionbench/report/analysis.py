"""The analysis of one condition: intervals of scores, best and tied methods, contrasts."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Request
from fusionbench.records.pairs import NO_TASK, Results, several_images
from fusionbench.records.parallel import in_order
from fusionbench.records.scores import ScoreTable
from fusionbench.report.contrasts import (
    ContrastPlan,
    ContrastRow,
    Measurer,
    Scope,
    contrast_rows,
    make_plan,
    weights_of,
)
from fusionbench.report.tables import Summary, cell, names, over_seeds
from fusionbench.stats.cells import mean_score, share_correct
from fusionbench.stats.estimate import FEWEST_REPLICATES, Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.ranks import outlying_seeds
from fusionbench.stats.suite import sum_over_shared_runs, sum_over_tasks
from fusionbench.stats.tied import shared_run_suite_pairs, suite_pairs, task_pairs, tied_set


def cell_interval(results: Results, table: ScoreTable, method: int, task: int) -> Summary:
    """Mean score of one cell and its 95 % interval.

    With at least four runs for new runs and new images (Wilson with an effective n, crossed t for
    scores between 0 and 1); with fewer a t over the runs on these images.
    """
    plain = cell(table, method, task)
    found = _outcomes(results, table, method, task)
    if found is None:
        return plain
    values, images = found
    of_cell = share_correct if values.dtype == np.bool_ else mean_score
    interval = of_cell(values, images)
    return Summary(
        mean=float(interval.mean),
        low=float(interval.low),
        high=float(interval.high),
        runs=len(values),
        seeds=plain.seeds,
        images=True,
    )


def suite_interval(results: Results, table: ScoreTable, method: int, scope: Scope) -> Summary:
    """Mean over tasks, each from chance (0) to perfect (1); refused unless all of them ran."""
    if method in table.leaky:
        return Summary(why="reads the answers")
    if not scope.tasks:
        return Summary(why=NO_TASK)
    scores = table.values[method, list(scope.tasks)]
    ran = int((~np.isnan(scores)).any(axis=1).sum())
    if ran < len(scope.tasks):
        return Summary(seeds=len(table.seeds), why=f"{ran} of {len(scope.tasks)} tasks")
    weights = weights_of(table, scope)
    chance = np.array([table.tasks[task].chance for task in scope.tasks])
    complete = ~np.isnan(scores).any(axis=0)
    plain = over_seeds(np.where(complete, weights @ (scores - chance[:, None]), np.nan))
    blocks = [
        _scores(results, table, method, task, complete, weight)
        for task, weight in zip(scope.tasks, weights, strict=True)
    ]
    tasks = [block for block in blocks if block is not None]
    if len(tasks) < len(blocks):
        return plain
    records = table.runs(method, scope.tasks[0])
    shared = any(record.seed_scope == "suite" for record in records)
    estimate = sum_over_shared_runs(tasks) if shared else sum_over_tasks(tasks)
    shift = float(weights @ chance)
    low, high = (float(end) - shift for end in estimate.interval())
    return Summary(
        mean=float(estimate.value) - shift,
        low=low,
        high=high,
        runs=plain.runs,
        seeds=plain.seeds,
        images=True,
    )


def outliers(table: ScoreTable) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(method, task, seeds) of runs more than 5 MAD from their cell's median."""
    for method in range(len(table.methods)):
        for task, facts in enumerate(table.tasks):
            scores = table.values[method, task]
            present = np.flatnonzero(~np.isnan(scores))
            if len(present) < FEWEST_REPLICATES or not facts.examples:
                continue
            far = outlying_seeds(scores[present], step=1 / facts.examples)
            if far.any():
                yield method, task, tuple(table.seeds[index] for index in present[far])


def _outcomes(
    results: Results, table: ScoreTable, method: int, task: int
) -> tuple[Shaped[np.ndarray, "seed item"], Shaped[np.ndarray, " item"]] | None:
    """Outcomes of a cell's runs and the images; None below four runs, without outcomes or images.

    Of a single image no noise between images can be estimated.
    """
    done = [record for record in table.runs(method, task) if record.status == "done"]
    same = len({record.items for record in done}) == 1 and all(one.outcomes for one in done)
    if len(done) < FEWEST_REPLICATES or not same:
        return None
    images = results.images(done[0])
    return (_stacked(results, done), images) if several_images(images) else None


def _stacked(results: Results, done: list[CellRecord]) -> Shaped[np.ndarray, "seed item"]:
    return np.stack([results.outcomes(record) for record in done])


def _scores(  # noqa: PLR0913  (one cell's runs and where they come from)
    results: Results,
    table: ScoreTable,
    method: int,
    task: int,
    complete: Float[np.ndarray, " seed"],
    weight: float,
) -> TaskScores | None:
    found = _outcomes(results, table, method, task)
    if found is None or int(complete.sum()) < FEWEST_REPLICATES:
        return None
    values, images = found
    present = ~np.isnan(table.values[method, task])
    kept = values[complete[present]]
    return TaskScores(values=kept.astype(np.float64), groups=images, weight=float(weight))


Runs = frozenset[tuple[int, str]]
"""Seeds and the file of examples that each was scored on."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The best and the tied methods of one column (a task, a group or the suite).

    Only methods with the same runs on the same examples are compared; one that lacks a run or
    reads the answers is neither.
    """

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
        _scores_column(results, table, rows, task, seeds, float(weight))
        for task, weight in zip(scope.tasks, weights, strict=True)
    ]
    if not all(several_images(task.groups) for task in tasks):
        return Column(compared=tuple(rows), seeds=len(seeds))
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
    shared = set.intersection(*(set(one) for one in found)) if found else set()
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


def _scores_column(  # noqa: PLR0913  (a block of the table and where it comes from)
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


_WORTH_A_PROCESS = 10_000
"""Cells; fewer are analysed in a second or two."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One condition: its suite tasks, what was planned, and the answers."""

    table: ScoreTable
    labels: tuple[str, ...]
    """Display names of methods: `mema-no_feedback (= penultimate)`."""
    plan: ContrastPlan
    scopes: tuple[Scope, ...]
    rows: tuple[ContrastRow, ...]
    cells: Mapping[tuple[int, int], Summary]
    """By (method, task)."""
    suite: Mapping[tuple[int, Scope], Summary]
    """Chance-corrected means over the suite and its groups."""
    columns: Mapping[Scope, Column]
    outlying: Mapping[tuple[int, int], tuple[int, ...]]
    """Outlying seeds, by (method, task)."""

    @cached_property
    def uncommitted(self) -> frozenset[int]:
        """Methods with records from a dirty tree."""
        cells = self.table.cells.items()
        return frozenset(
            m for (m, _, _), one in cells if one.provenance.get("code", {}).get("dirty")
        )

    @property
    def aggregates(self) -> tuple[Scope, ...]:
        """The suite and its groups."""
        return tuple(scope for scope in self.scopes if scope.level != "task")

    @property
    def testable(self) -> bool:
        """Whether any comparison has enough runs for a test."""
        return any(row.answer.p is not None for row in self.rows)

    def of(self, kind: str) -> list[ContrastRow]:
        """The rows of one kind, in order."""
        return [row for row in self.rows if row.kind == kind]

    def against_baseline(self) -> dict[tuple[str, Scope], ContrastRow]:
        """The row of each method and scope against the plan's baseline."""
        return {
            (row.contrast.method, row.scope): row
            for row in self.rows
            if row.contrast.baseline == self.plan.baseline
        }


def analyse_all(
    results: Results,
    tables: Sequence[ScoreTable],
    runs: Sequence[Request],
    baseline: str | None = None,
) -> tuple[Analysis, ...]:
    """Analyse conditions, each in a process of its own where there is much to do."""
    if sum(len(table.cells) for table in tables) < _WORTH_A_PROCESS:
        return tuple(analyse(results, table, runs, baseline) for table in tables)
    # Before the fork: reference counts make each process copy the pages it reads.
    results.number_images()
    jobs = [partial(_findings, results, table, runs, baseline) for table in tables]
    found = zip(tables, in_order(jobs), strict=True)
    return tuple(Analysis(table=table, **findings) for table, findings in found)


def _findings(
    results: Results, table: ScoreTable, runs: Sequence[Request], baseline: str | None
) -> dict[str, Any]:
    """The fields of an analysis except the table, which the parent process already has."""
    fields = vars(analyse(results, table, runs, baseline))
    return {name: value for name, value in fields.items() if name != "table"}


def analyse(
    results: Results, table: ScoreTable, runs: Sequence[Request], baseline: str | None = None
) -> Analysis:
    """Analyse the suite tasks of one condition.

    Raises UserError for a baseline that was not run, ValueError for a score that is no number.
    """
    plan = make_plan(table, runs, baseline)
    measurer = Measurer(results, table)
    aggregates = [scope for scope in measurer.scopes if scope.level != "task"]
    methods, tasks = range(len(table.methods)), range(len(table.tasks))
    enough = len(table.seeds) >= FEWEST_REPLICATES
    return Analysis(
        table=table,
        labels=tuple(names(table)),
        plan=plan,
        scopes=measurer.scopes,
        rows=contrast_rows(measurer, table, plan),
        cells={(m, t): cell_interval(results, table, m, t) for m in methods for t in tasks},
        suite={(m, s): suite_interval(results, table, m, s) for m in methods for s in aggregates},
        columns={
            scope: column(results, table, scope, plan.baseline) if enough else Column()
            for scope in measurer.scopes
        },
        outlying={(m, t): seeds for m, t, seeds in outliers(table)},
    )
