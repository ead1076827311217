"""Ablation tables: Markdown and LaTeX for people, CSV for programs, and the report's section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float

from fusionbench.records.cell import CellRecord
from fusionbench.records.history import Design, Planned, read_designs
from fusionbench.records.store import Store
from fusionbench.report.page import Page
from fusionbench.report.tables import Row, latex_grid, markdown
from fusionbench.stats.crossed import compare, crossed_t
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.factorial import MOST_SWITCHES, factorial_effects, fractional_effects
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import suite_weights, sum_over_shared_runs, sum_over_tasks
from fusionbench.stats.verdicts import holm

# What a change does: contrasts of cells within one (seed, image), each with its own error.
#
# Every effect is a weighted sum of arms on the same seed and the same test example; its interval is
# the crossed t over new runs and new images (`stats.crossed`), over tasks that of `stats.suite`.


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


NAME = "ablation"
_LARGE = 0.05
"""A change of the parameters beyond this share is named: its effect may be one of size."""
_HOW_TO_READ = {
    "one_factor_out": (
        "Each row changes one setting of the full method and leaves the rest: **simple effects** "
        "at the full model, variant minus full. They are no main effects and do not add up."
    ),
    "factorial": (
        "All combinations of the switches were run. A **main effect** is on minus off, averaged "
        "over the settings of the other switches; an interaction is half the difference of a "
        "switch's effect with the other on and off."
    ),
}
_INTERVALS = (
    "In points, with the 95 % interval for new runs and new images: every effect is a difference "
    "within the same seed and test image and has its own error. {overall} p: crossed t, two-sided; "
    "adjusted by Holm among {family}."
)


def ablation_page(store: Store) -> Page:
    """Every design that was run into the folder, in the order in which it was asked for."""
    texts, rows, latex = [], list[Row](), []
    for planned in read_designs(store.folder):
        cells = read_cells(store, planned)
        if not cells:
            continue
        found = effects(planned, cells)
        shown = effect_rows(planned, cells, found)
        texts.append(_text(planned, cells, shown))
        latex.append(_latex(planned, shown))
        rows += long_rows(planned, cells, found)
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(latex))


def effect_rows(planned: Planned, cells: Sequence[TaskCells], found: Sequence[Effect]) -> list[Row]:
    """One row for each effect: overall, p, and task by task."""
    single = planned.design.kind == "one_factor_out"
    rows = []
    for effect in found:
        row = {"change" if single else "effect": effect.contrast.name}
        row |= {} if single else {"kind": effect.contrast.kind}
        row |= {
            "overall": _points(effect.overall),
            "p": _p(effect.p),
            "p (Holm)": _p(effect.p_holm),
        }
        row |= {task.name: _points(effect.tasks[task.name]) for task in cells}
        rows.append(row | ({"parameters": _parameters(effect, cells)} if single else {}))
    return rows


def long_rows(planned: Planned, cells: Sequence[TaskCells], found: Sequence[Effect]) -> list[Row]:
    """One row for each effect and task, and one over the tasks, all digits."""
    rows = []
    for effect in found:
        places = {"overall": effect.overall, **effect.tasks}
        for place, one in places.items():
            total = place == "overall"
            rows.append(
                {
                    "design": planned.design.kind,
                    "method": planned.design.method,
                    "encoder": planned.encoder,
                    "budget": planned.budget,
                    "effect": effect.contrast.name,
                    "kind": effect.contrast.kind,
                    "contexts": str(effect.contrast.contexts),
                    "task": place,
                    **_numbers(one),
                    "p": _digits(effect.p) if total else "",
                    "p_holm": _digits(effect.p_holm) if total else "",
                }
            )
    return rows


def _numbers(found: Found) -> Row:
    estimate = found.estimate
    low, high = estimate.interval() if estimate is not None else (None, None)
    return {
        "value": _digits(found.value) if found.seeds else "",
        "ci_low": _digits(low),
        "ci_high": _digits(high),
        "nu": _digits(estimate.nu if estimate is not None else None),
        "n_seeds": str(found.seeds),
        "discordant_images": str(found.discordant) if found.discordant >= 0 else "",
    }


def _text(planned: Planned, cells: Sequence[TaskCells], rows: Sequence[Row]) -> str:
    design = planned.design
    family = "the rows" if design.kind == "one_factor_out" else "main effects, then among two-way"
    counted = ", ".join(task.name for task in aggregated(cells))
    overall = f"Overall: 100 points from chance to perfect, the mean over {counted}."
    lines = [f"### {title(planned)}", "", _HOW_TO_READ[design.kind]]
    lines += [_INTERVALS.format(overall=overall, family=family)]
    lines += _switches(planned)
    lines += ["", *_baseline(planned, cells), "", markdown(rows)]
    return "\n".join(lines)


def title(planned: Planned) -> str:
    """`mema: one change at a time (nano, 60 steps of 32)`."""
    kinds = {"one_factor_out": "one change at a time", "factorial": "combined switches"}
    return f"{planned.design.method}: {kinds[planned.design.kind]} ({planned.budget})"


def _switches(planned: Planned) -> list[str]:
    design = planned.design
    if design.kind != "factorial":
        return []
    lines = [f"Off means {', '.join(design.switches)}; {len(design.arms)} cells."]
    if design.void:
        lines += [
            f"{design.void} combinations in which a switch can do nothing were left out: an effect "
            "is averaged over the settings in which all its cells exist, and one that has none is "
            "not shown."
        ]
    return lines


def _baseline(planned: Planned, cells: Sequence[TaskCells]) -> list[str]:
    """The full method's own scores, and what is missing."""
    scores = []
    for task in cells:
        runs = [values.mean() for (arm, _), values in sorted(task.scores.items()) if arm == 0]
        shown = f"{100 * np.mean(runs):.1f}" if runs else "not run"
        scores.append(f"{task.name} {shown} (chance {100 * task.facts.chance:.1f})")
    wanted = sum(len(ids) for tasks in planned.cells.values() for ids in tasks.values())
    done = sum(len(task.records) for task in cells)
    missing = [f"{wanted - done} of {wanted} cells are missing."] if done < wanted else []
    return [f"The full method: {'; '.join(scores)} percent.", *missing]


def _latex(planned: Planned, rows: Sequence[Row]) -> str:
    label = "-".join([NAME, planned.design.kind, planned.design.method])
    return latex_grid(rows, title(planned), label)


def _points(found: Found) -> str:
    """`+1.2 [-0.3, 2.7]` in points; fewer runs than planned are said."""
    if not found.seeds:
        return "not run"
    runs = "" if found.seeds == found.planned else f" ({found.seeds} of {found.planned} runs)"
    if found.estimate is None:
        return (
            f"{100 * found.value:+.1f} (1 run)" if not runs else f"{100 * found.value:+.1f}{runs}"
        )
    if found.discordant == 0:
        return f"no example differs{runs}"
    low, high = (100 * float(end) for end in found.estimate.interval())
    return f"{100 * found.value:+.1f} [{low:+.1f}, {high:+.1f}]{runs}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _parameters(effect: Effect, cells: Sequence[TaskCells]) -> str:
    """The variant's fusion parameters, and how many more or fewer, where that is much."""
    arm = int(np.flatnonzero(effect.contrast.weights > 0)[0])
    counts = [_count(task, arm) for task in cells]
    fulls = [_count(task, 0) for task in cells]
    known = [(one, full) for one, full in zip(counts, fulls, strict=True) if one and full]
    if not known:
        return "-"
    one, full = known[0]
    share = one[0] / full[0] - 1 if full[0] else 0.0
    return f"{one[0]:,} ({100 * share:+.0f} %)" if abs(share) > _LARGE else f"{one[0]:,}"


def _count(task: TaskCells, arm: int) -> tuple[int] | None:
    records = (record for (row, _), record in task.records.items() if row == arm)
    record = next(records, None)
    return None if record is None else (int(record.parameters.get("fusion", 0)),)


def _digits(value: SupportsFloat | None) -> str:
    return "" if value is None else f"{float(value):.6f}"
