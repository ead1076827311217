"""The interval of a score (a cell, or a method on the suite) and runs that stand out.

With at least four runs: for new runs and new images (Wilson with an effective n, crossed t for
scores between 0 and 1). With fewer: a t over the runs, for these very images. Neither compares
methods, since the pairing is lost.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Shaped

from fusionbench.records.cell import CellRecord
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis.measure import Scope, weights_of
from fusionbench.report.summary import Summary, cell, over_seeds
from fusionbench.stats.cells import mean_score, share_correct
from fusionbench.stats.estimate import FEWEST_REPLICATES
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.ranks import outlying_seeds
from fusionbench.stats.suite import sum_over_shared_runs, sum_over_tasks


def cell_interval(results: Results, table: ScoreTable, method: int, task: int) -> Summary:
    """Mean score of one cell and its 95 % interval."""
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
    """Outcomes of a cell's runs and the images; None below four runs or without outcomes."""
    done = [record for record in table.runs(method, task) if record.status == "done"]
    same = len({record.items for record in done}) == 1 and all(one.outcomes for one in done)
    if len(done) < FEWEST_REPLICATES or not same:
        return None
    return _stacked(results, done), results.images(done[0])


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
