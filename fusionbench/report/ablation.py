"""Ablation tables: Markdown and LaTeX for people, CSV for programs, and the report's section.

An effect is a contrast with weights over the cells of a design, measured like any other contrast
(`records.pairs`) and answered by the one judge, corrected within its kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from fusionbench.records.history import Design, PlannedAblation, read_designs
from fusionbench.records.pairs import Measured, Results, corrected_weights
from fusionbench.records.scores import ScoreTable, score_tables
from fusionbench.report.page import Page
from fusionbench.report.tables import Row, csv_row, latex_grid, markdown, p_text
from fusionbench.stats import verdicts
from fusionbench.stats.factorial import MOST_SWITCHES, factorial_effects, fractional_effects
from fusionbench.stats.verdicts import Correction, Decision, Question

OVERALL = "overall"


@dataclass(frozen=True, kw_only=True)
class EffectWeights:
    """Weights over the cells of a design."""

    name: str
    kind: str
    """`simple effect`, `main effect` or `two-way interaction`."""
    weights: Float[np.ndarray, " cell"]
    contexts: int = 1
    """Settings of the other switches over which it is averaged."""


@dataclass(frozen=True, kw_only=True)
class AblationEffect:
    """A contrast, measured over the counted tasks (`overall`) and on each task, and its answer."""

    contrast: EffectWeights
    overall: Measured
    tasks: Mapping[str, Measured]
    answer: Decision = Decision()


def design_table(results: Results, planned: PlannedAblation) -> ScoreTable | None:
    """Finished cells of a design; the rows are its variants by label. None if none has run.

    The design names its cells by id, so another version or budget under one label cannot enter.
    """
    records = [
        replace(record, label=label)
        for label, tasks in planned.cells.items()
        for ids in tasks.values()
        for record in map(results.store.find, ids)
        if record is not None and record.status == "done"
    ]
    table = next(iter(score_tables(records)), None)
    return None if table is None else _marked(table, results)


def _marked(table: ScoreTable, results: Results) -> ScoreTable:
    """The table with the marks of its tasks from the table that holds the same cells."""
    columns = {record.id: column for (_, column, _), record in table.cells.items()}
    tasks = list(table.tasks)
    for every in results.tables:
        for (_, column, _), record in every.cells.items():
            if (own := columns.get(record.id)) is not None:
                tasks[own] = replace(tasks[own], mark=every.tasks[column].mark)
    return replace(table, tasks=tuple(tasks))


def contrasts(design: Design) -> list[EffectWeights]:
    """One change: variant minus full method. Factorial: main effects, then two-way interactions."""
    if design.kind == "one_factor_out":
        every = np.eye(len(design.variants))
        return [
            EffectWeights(
                name=f"{variant.switch}={variant.level}",
                kind="simple effect",
                weights=every[row] - every[0],
            )
            for row, variant in enumerate(design.variants)
            if row
        ]
    names = [text.partition("=")[0] for text in design.switches]
    on = np.array([variant.on for variant in design.variants], dtype=np.bool_)
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
    sum_of: Sequence[tuple[str, ...]], weights: Float[np.ndarray, " cell"], contexts: int
) -> EffectWeights:
    return EffectWeights(
        name=" + ".join(" x ".join(names) for names in sum_of),
        kind="main effect" if len(sum_of[0]) == 1 else "two-way interaction",
        weights=weights,
        contexts=contexts,
    )


def effects(results: Results, planned: PlannedAblation, table: ScoreTable) -> list[AblationEffect]:
    """All effects of a design; p-values are corrected (Holm) within their kind."""
    columns = _columns(planned, table)
    counted = [columns[name] for name in counted_tasks(planned, table)]
    complete = len(columns) == len(planned.tasks)
    found = []
    for contrast in contrasts(planned.design):
        rows = _rows(contrast, planned, table)
        if rows is None:
            gap = Measured(gap="a variant was not run")
            found.append(
                AblationEffect(contrast=contrast, overall=gap, tasks=dict.fromkeys(columns, gap))
            )
            continue
        overall = (
            results.contrast(table, rows, counted, corrected_weights(table, counted))
            if complete
            else Measured(gap="a task was not run")
        )
        tasks = {
            name: results.contrast(table, rows, [column], np.ones(1))
            for name, column in columns.items()
        }
        found.append(AblationEffect(contrast=contrast, overall=overall, tasks=tasks))
    return _judged(found)


def _judged(found: Sequence[AblationEffect]) -> list[AblationEffect]:
    estimates = [effect.overall.estimate for effect in found]
    answers = verdicts.judge_groups(
        [Question(references=() if one is None else (one,)) for one in estimates],
        [effect.contrast.kind for effect in found],
        Correction.HOLM,
    )
    return [replace(one, answer=answer) for one, answer in zip(found, answers, strict=True)]


def counted_tasks(planned: PlannedAblation, table: ScoreTable) -> list[str]:
    """The tasks of the suite, or all of them if none belongs to it."""
    columns = _columns(planned, table)
    suite = [name for name, column in columns.items() if table.tasks[column].counts]
    return suite or list(columns)


def _columns(planned: PlannedAblation, table: ScoreTable) -> dict[str, int]:
    """Column of each task that ran, in the order of the request."""
    names = [task.name for task in table.tasks]
    return {name: names.index(name) for name in planned.tasks if name in names}


def _rows(
    contrast: EffectWeights, planned: PlannedAblation, table: ScoreTable
) -> dict[int, float] | None:
    """Weights by row of the table; None if a variant has no finished cell."""
    labels = [variant.label for variant in planned.design.variants]
    used = [int(cell) for cell in np.flatnonzero(contrast.weights)]
    if not {labels[cell] for cell in used} <= set(table.methods):
        return None
    return {table.methods.index(labels[cell]): float(contrast.weights[cell]) for cell in used}


NAME = "ablation"
_LARGE = 0.05
"""A change of the parameters beyond this share is named: its effect may be one of size."""
_HOW_TO_READ = {
    "one_factor_out": (
        "Each row changes one setting of the full method and leaves the rest: **simple effects** "
        "at the full model, variant minus full. They are not main effects and do not add up."
    ),
    "factorial": (
        "All combinations of the switches were run. A **main effect** is on minus off, averaged "
        "over the settings of the other switches; an interaction is half the difference of a "
        "switch's effect with the other on and off."
    ),
}
_INTERVALS = (
    "In points, with the 95 % interval for new runs and new images: every effect is a difference "
    "within the same seed and test image, with its own error. {overall} p: crossed t, two-sided; "
    "adjusted by Holm among {family}."
)


def ablation_page(results: Results) -> Page:
    """Every design that was run into the folder, in the order in which it was asked for."""
    texts, rows, latex = [], list[Row](), []
    for planned in read_designs(results.store.folder):
        table = design_table(results, planned)
        if table is None:
            continue
        found = effects(results, planned, table)
        shown = effect_rows(planned, table, found)
        texts.append(_text(planned, table, shown))
        latex.append(_latex(planned, shown))
        rows += long_rows(planned, found)
    return Page(markdown="\n".join(texts), rows=rows, latex="\n".join(latex))


def effect_rows(
    planned: PlannedAblation, table: ScoreTable, found: Sequence[AblationEffect]
) -> list[Row]:
    """One row for each effect: overall, p, and task by task."""
    single = planned.design.kind == "one_factor_out"
    seeds = _planned_seeds(planned)
    rows = []
    for effect in found:
        row = {"change" if single else "effect": effect.contrast.name}
        row |= {} if single else {"kind": effect.contrast.kind}
        row |= {
            OVERALL: _points(effect.overall, seeds),
            "p": p_text(effect.answer.p),
            "p (Holm)": p_text(effect.answer.p_adjusted),
        }
        row |= {name: _points(one, seeds) for name, one in effect.tasks.items()}
        rows.append(row | ({"parameters": _parameters(effect, planned, table)} if single else {}))
    return rows


def long_rows(planned: PlannedAblation, found: Sequence[AblationEffect]) -> list[Row]:
    """One row for each effect and task, and one over the tasks, all digits."""
    return [
        csv_row(
            {
                "design": planned.design.kind,
                "method": planned.design.method,
                "encoder": planned.encoder,
                "budget": planned.budget,
                "effect": effect.contrast.name,
                "kind": effect.contrast.kind,
                "contexts": effect.contrast.contexts,
                "task": place,
                **_numbers(one, place),
                "p": effect.answer.p if place == OVERALL else None,
                "p_holm": effect.answer.p_adjusted if place == OVERALL else None,
            }
        )
        for effect in found
        for place, one in {OVERALL: effect.overall, **effect.tasks}.items()
    ]


def _numbers(one: Measured, place: str) -> dict[str, object]:
    estimate = one.estimate
    low, high = estimate.interval() if estimate is not None else (None, None)
    return {
        "value": None if one.by_seed is None else one.by_seed.mean(),
        "ci_low": low,
        "ci_high": high,
        "nu": estimate.nu if estimate is not None else None,
        "n_seeds": len(one.seeds),
        "discordant_images": None if estimate is None or place == OVERALL else one.discordant,
    }


def _text(planned: PlannedAblation, table: ScoreTable, rows: Sequence[Row]) -> str:
    design = planned.design
    family = "the rows" if design.kind == "one_factor_out" else "main effects, then among two-way"
    counted = ", ".join(counted_tasks(planned, table))
    overall = f"Overall: 100 points from chance to perfect, the mean over {counted}."
    lines = [f"### {title(planned)}", "", _HOW_TO_READ[design.kind]]
    lines += [_INTERVALS.format(overall=overall, family=family)]
    lines += _switches(planned)
    lines += ["", *_full_method(planned, table), "", markdown(rows)]
    return "\n".join(lines)


def title(planned: PlannedAblation) -> str:
    """`mema: one change at a time (nano, 60 steps of 32)`."""
    kinds = {"one_factor_out": "one change at a time", "factorial": "combined switches"}
    return f"{planned.design.method}: {kinds[planned.design.kind]} ({planned.budget})"


def _switches(planned: PlannedAblation) -> list[str]:
    design = planned.design
    if design.kind != "factorial":
        return []
    lines = [f"Off means {', '.join(design.switches)}; {len(design.variants)} cells."]
    if design.skipped:
        lines += [
            f"{design.skipped} combinations in which a switch can do nothing were left out: an "
            "effect is averaged over the settings in which all its cells exist, and one that has "
            "none is not shown."
        ]
    return lines


def _full_method(planned: PlannedAblation, table: ScoreTable) -> list[str]:
    """Scores of the full method, and the number of missing cells."""
    label, scores = planned.design.variants[0].label, []
    for name, column in _columns(planned, table).items():
        row = table.methods.index(label) if label in table.methods else None
        runs = np.zeros(0) if row is None else table.values[row, column]
        shown = f"{100 * np.nanmean(runs):.1f}" if np.isfinite(runs).any() else "not run"
        scores.append(f"{name} {shown} (chance {100 * table.tasks[column].chance:.1f})")
    wanted = sum(len(ids) for tasks in planned.cells.values() for ids in tasks.values())
    done = len(table.cells)
    missing = [f"{wanted - done} of {wanted} cells are missing."] if done < wanted else []
    return [f"The full method: {'; '.join(scores)} percent.", *missing]


def _latex(planned: PlannedAblation, rows: Sequence[Row]) -> str:
    label = "-".join([NAME, planned.design.kind, planned.design.method])
    return latex_grid(rows, title(planned), label)


def _planned_seeds(planned: PlannedAblation) -> int:
    return len(next(iter(planned.cells.values()))[planned.tasks[0]])


def _points(one: Measured, planned: int) -> str:
    """`+1.2 [-0.3, 2.7]` in points, with the number of runs where it is not the planned one."""
    if one.by_seed is None:
        return "not run"
    count = len(one.seeds)
    runs = "" if count == planned else f" ({count} of {planned} runs)"
    value = 100 * float(one.by_seed.mean())
    if one.estimate is None:
        return f"{value:+.1f}{runs or ' (1 run)'}"
    if one.identical:
        return f"no example differs{runs}"
    low, high = (100 * float(end) for end in one.estimate.interval())
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]{runs}"


def _parameters(effect: AblationEffect, planned: PlannedAblation, table: ScoreTable) -> str:
    """The variant's fusion parameters, with the change in percent where it is large."""
    variant = planned.design.variants[int(np.flatnonzero(effect.contrast.weights > 0)[0])]
    for column in range(len(table.tasks)):
        one = _fusion_parameters(table, variant.label, column)
        full = _fusion_parameters(table, planned.design.variants[0].label, column)
        if one is not None and full is not None:
            share = one / full - 1 if full else 0.0
            return f"{one:,} ({100 * share:+.0f} %)" if abs(share) > _LARGE else f"{one:,}"
    return "-"


def _fusion_parameters(table: ScoreTable, label: str, column: int) -> int | None:
    runs = table.runs(table.methods.index(label), column) if label in table.methods else []
    return int(runs[0].parameters.get("fusion", 0)) if runs else None
