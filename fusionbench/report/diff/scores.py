"""Scores of two folders, paired: the second minus the first, same method, task, seed and example.

With the same seeds both folders drew the same training examples in the same order, so what is
left of a difference comes from what `facts` lists. All of it is exploratory: Benjamini-Hochberg.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusionbench.records.pairs import (
    Gap,
    Pair,
    Results,
    combined,
    common,
    finished,
    one_scope,
    task_weights,
)
from fusionbench.report.diff.matching import Sides
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.verdicts import benjamini_hochberg

SUITE = "suite"


@dataclass(frozen=True, kw_only=True)
class Shift:
    """B minus A of one method over one task or the suite."""

    method: str
    over: str
    tasks: int = 1
    seeds: int = 0
    items: int = 0
    """Examples that both folders have."""
    identical: bool = False
    estimate: Estimate | None = None
    gap: str = ""
    """Why there is none."""
    q: float = float("nan")
    """Benjamini-Hochberg over all shifts of the comparison; NaN without a test."""

    @property
    def p(self) -> float:
        """Two-sided crossed t; NaN with too few seeds, and where nothing differs at all."""
        if self.estimate is None or not self.estimate.testable:
            return float("nan")
        return float(self.estimate.p_value())


def shifts(a: Results, b: Results, sides: Sides) -> list[Shift]:
    """Every method that both tables have: over the suite, then task by task."""
    found = [shift for method in sides.methods for shift in _of_method(a, b, sides, method)]
    tested = [index for index, shift in enumerate(found) if not np.isnan(shift.p)]
    if not tested:
        return found
    adjusted = benjamini_hochberg(np.array([found[index].p for index in tested]))
    for index, q in zip(tested, adjusted, strict=True):
        found[index] = replace(found[index], q=float(q))
    return found


def _of_method(a: Results, b: Results, sides: Sides, method: str) -> list[Shift]:
    pairs: dict[str, Pair | Gap] = {}
    for task in sides.tasks:
        try:
            pairs[task] = _pair(a, b, sides, method, task)
        except Gap as gap:
            pairs[task] = gap
    alone = [_shift(sides, method, task, [pair]) for task, pair in pairs.items()]
    suite = [t.name for t in sides.a.tasks if t.in_suite and t.name in pairs]
    if len(suite) < 2:
        return alone
    return [_shift(sides, method, SUITE, [pairs[task] for task in suite]), *alone]


def _shift(sides: Sides, method: str, over: str, pairs: Sequence[Pair | Gap]) -> Shift:
    missing = [pair for pair in pairs if isinstance(pair, Gap)]
    there = [pair for pair in pairs if isinstance(pair, Pair)]
    start = Shift(method=method, over=over, tasks=len(pairs))
    if missing:
        return replace(start, gap=str(missing[0]))
    identical = not any(pair.differences.any() for pair in there)
    start = replace(start, identical=identical, seeds=min(len(pair.seeds) for pair in there))
    start = replace(start, items=sum(pair.differences.shape[1] for pair in there))
    if identical:
        return start
    columns = [_column(sides, pair.task.name) for pair in there]
    try:
        estimate = combined(common(there), task_weights(sides.a, columns))
    except Gap as gap:
        return replace(start, gap=str(gap))
    return replace(start, estimate=estimate)


def _pair(a: Results, b: Results, sides: Sides, method: str, task: str) -> Pair:
    """Both folders' cells of one method and task on common seeds and examples. Raises Gap."""
    row, column = sides.a.methods.index(method), _column(sides, task)
    other = [t.name for t in sides.b.tasks].index(task)
    first = finished(sides.a, row, column)
    second = finished(sides.b, sides.b.methods.index(method), other)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise Gap(f"no seed of {method} on {task} is in both")
    mine, theirs = a.items(first[seeds[0]]), b.items(second[seeds[0]])
    place = {name: index for index, name in enumerate(theirs.names)}
    keep = [index for index, name in enumerate(mine.names) if name in place]
    if len(keep) < 2:
        raise Gap(f"{task} has no examples in common")
    at = [place[mine.names[index]] for index in keep]
    after = np.stack([b.outcomes(second[seed])[at] for seed in seeds]).astype(np.float64)
    before = np.stack([a.outcomes(first[seed])[keep] for seed in seeds]).astype(np.float64)
    return Pair(
        task=sides.a.tasks[column],
        seeds=tuple(seeds),
        unpaired=tuple(sorted(first.keys() ^ second.keys())),
        differences=after - before,
        groups=np.asarray(mine.groups)[keep],
        scope=one_scope([*first.values(), *second.values()], task),
    )


def _column(sides: Sides, task: str) -> int:
    return [t.name for t in sides.a.tasks].index(task)
