"""Ablation tables: Markdown and LaTeX for people, CSV for programs, and the report's section."""

from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np

from fusionbench.records.history import Planned, read_designs
from fusionbench.records.store import Store
from fusionbench.report.effects import Effect, Found, TaskCells, aggregated, effects, read_cells
from fusionbench.report.grid import latex_grid
from fusionbench.report.sections import Page
from fusionbench.report.tables import Row, markdown

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
