"""What a change does: contrasts of cells within one (seed, image), each with its own error.

Every effect is a weighted sum of arms on the same seed and the same test example; its interval is
the crossed t over new runs and new images (`stats.crossed`), over tasks that of `stats.suite`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Design, Planned
from fusionbench.records.store import Store
from fusionbench.stats.crossed import compare, crossed_t
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.factorial import MOST_SWITCHES, factorial_effects, fractional_effects
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import suite_weights, sum_over_shared_runs, sum_over_tasks
from fusionbench.stats.verdicts import holm

_FEWEST_SEEDS = 2
"""One run has no interval."""


@dataclass(frozen=True, kw_only=True)
class TaskCells:
    """The finished cells of one task: records and scores by arm and seed."""

    name: str
    records: Mapping[tuple[int, int], CellRecord]
    scores: Mapping[tuple[int, int], Float[np.ndarray, " example"]]
    groups: tuple[str, ...]

    @property
    def facts(self) -> CellRecord:
        """Any of its records: chance, metric and suite are the same in all."""
        return next(iter(self.records.values()))


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Weights over the arms, and what they mean."""

    name: str
    kind: str
    """`simple effect`, `main effect` or `two-way interaction`."""
    weights: Float[np.ndarray, " arm"]
    contexts: int = 1
    """Settings of the other switches over which it is averaged."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An effect on one task, or over several, in shares of a score."""

    estimate: Estimate | None = None
    """None where there is no run, or a single one."""
    value: float = float("nan")
    seeds: int = 0
    planned: int = 0
    discordant: int = -1
    """Images on which any run of any arm differs; -1 over several tasks."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A contrast with its numbers."""

    contrast: Contrast
    overall: Found
    tasks: Mapping[str, Found] = field(default_factory=dict)
    p: float | None = None
    p_holm: float | None = None


def read_cells(store: Store, planned: Planned) -> list[TaskCells]:
    """The finished cells of a design, task by task; tasks without any are left out."""
    found = []
    for task in planned.tasks:
        records: dict[tuple[int, int], CellRecord] = {}
        for row, arm in enumerate(planned.design.arms):
            for seed, cell in enumerate(planned.cells[arm.label][task]):
                record = store.find(cell)
                if record is not None and record.status == "done":
                    records[row, seed] = record
        if records:
            first = next(iter(records.values()))
            # Another list of examples cannot be paired with this one, so its cells do not count.
            records = {key: one for key, one in records.items() if one.items == first.items}
            scores = {key: store.outcomes(record) for key, record in records.items()}
            groups = store.items(first).groups
            found.append(TaskCells(name=task, records=records, scores=scores, groups=groups))
    return found


def contrasts(design: Design) -> list[Contrast]:
    """One change: arm minus full method. Factorial: main effects, then two-way interactions."""
    if design.kind == "one_factor_out":
        return [
            Contrast(
                name=f"{arm.switch}={arm.level}",
                kind="simple effect",
                weights=np.eye(len(design.arms))[row] - np.eye(len(design.arms))[0],
            )
            for row, arm in enumerate(design.arms)
            if row
        ]
    names = [text.partition("=")[0] for text in design.switches]
    on = np.array([arm.on for arm in design.arms], dtype=np.bool_)
    if len(names) > MOST_SWITCHES:
        return [
            _contrast(one.sum_of, one.effect.weights, one.effect.contexts)
            for one in fractional_effects(names, on)
        ]
    return [
        _contrast((effect.switches,), effect.weights, effect.contexts)
        for effect in factorial_effects(names, on)
        if effect.order <= 2
    ]


def _contrast(
    sum_of: Sequence[tuple[str, ...]], weights: Float[np.ndarray, " arm"], contexts: int
) -> Contrast:
    return Contrast(
        name=" + ".join(" x ".join(names) for names in sum_of),
        kind="main effect" if len(sum_of[0]) == 1 else "two-way interaction",
        weights=weights,
        contexts=contexts,
    )


def effects(planned: Planned, cells: Sequence[TaskCells]) -> list[Effect]:
    """All effects of a design, with p-values corrected (Holm) within their kind."""
    seeds = len(next(iter(planned.cells.values()))[planned.tasks[0]])
    # A mean over tasks stands only where all of them ran.
    counted = aggregated(cells) if len(cells) == len(planned.tasks) else []
    found = []
    for contrast in contrasts(planned.design):
        overall = _overall(contrast, counted, seeds)
        tasks = {task.name: _on_task(contrast, task, seeds) for task in cells}
        found.append(Effect(contrast=contrast, overall=overall, tasks=tasks))
    return _tested(found)


def aggregated(cells: Sequence[TaskCells]) -> list[TaskCells]:
    """The tasks of the suite, or all of them if none belongs to it."""
    return [task for task in cells if task.facts.in_suite] or list(cells)


def shared_seeds(contrast: Contrast, task: TaskCells) -> list[int]:
    """Seeds in which every arm of the contrast has run."""
    arms = [int(arm) for arm in np.flatnonzero(contrast.weights)]
    seeds = sorted({seed for _, seed in task.scores})
    return [seed for seed in seeds if all((arm, seed) in task.scores for arm in arms)]


def _differences(
    contrast: Contrast, task: TaskCells, seeds: Sequence[int]
) -> Float[np.ndarray, "seed example"]:
    arms = [int(arm) for arm in np.flatnonzero(contrast.weights)]
    table = np.array([[task.scores[arm, seed] for seed in seeds] for arm in arms], dtype=np.float64)
    return np.einsum("a,asi->si", contrast.weights[arms], table)


def _on_task(contrast: Contrast, task: TaskCells, planned: int) -> Found:
    seeds = shared_seeds(contrast, task)
    if not seeds:
        return Found(planned=planned)
    differences = _differences(contrast, task, seeds)
    value = float(differences.mean())
    if len(seeds) < _FEWEST_SEEDS:
        return Found(value=value, seeds=len(seeds), planned=planned)
    parts = compare(differences, np.array(task.groups))
    return Found(
        estimate=crossed_t(parts),
        value=value,
        seeds=len(seeds),
        planned=planned,
        discordant=int(parts.discordant),
    )


def _overall(contrast: Contrast, tasks: Sequence[TaskCells], planned: int) -> Found:
    """The weighted mean over tasks, in the seeds that all of them have."""
    seeds = [shared_seeds(contrast, task) for task in tasks]
    common = sorted(set.intersection(*map(set, seeds))) if seeds else []
    if not common:
        return Found(planned=planned)
    weights = suite_weights(np.array([task.facts.chance for task in tasks]))
    scores = [
        TaskScores(
            values=_differences(contrast, task, common),
            groups=np.array(task.groups),
            weight=float(weight),
        )
        for task, weight in zip(tasks, weights, strict=True)
    ]
    value = float(sum(one.weight * one.values.mean() for one in scores))
    if len(common) < _FEWEST_SEEDS:
        return Found(value=value, seeds=len(common), planned=planned)
    shared = {task.facts.seed_scope for task in tasks} == {"suite"}
    estimate = (sum_over_shared_runs if shared else sum_over_tasks)(scores)
    return Found(estimate=estimate, value=value, seeds=len(common), planned=planned)


def _tested(found: Sequence[Effect]) -> list[Effect]:
    """Test the overall effects, Holm among those of one kind; with too few runs there is no p."""
    raw = [
        float(effect.overall.estimate.p_value())
        if effect.overall.estimate is not None and effect.overall.estimate.testable
        else None
        for effect in found
    ]
    adjusted: list[float | None] = [None] * len(found)
    for kind in {effect.contrast.kind for effect in found}:
        family = [
            row
            for row, effect in enumerate(found)
            if effect.contrast.kind == kind and raw[row] is not None
        ]
        values = holm(np.array([raw[row] for row in family], dtype=np.float64))
        for row, value in zip(family, values, strict=True):
            adjusted[row] = float(value)
    return [
        Effect(contrast=one.contrast, overall=one.overall, tasks=one.tasks, p=p, p_holm=q)
        for one, p, q in zip(found, raw, adjusted, strict=True)
    ]
