"""A plan for people (Markdown, one row a task) and for programs (CSV, one row a contrast)."""

import math
from collections.abc import Sequence

import numpy as np

from fusionbench.report.power.outlook import AT_SEEDS, MOST, Goal, Outlook
from fusionbench.report.power.planning import Planned, PowerOptions
from fusionbench.report.tables import Row, markdown

_READING = """\
MDE: the true difference that a study finds with 80 % power, in points; over several tasks every
task counts the same between chance (0) and perfect (100). Each entry is the median over the
contrasts, the largest in brackets; of a baseline and a control it is the one that is harder to see.
"For ever" is the floor that no number of seeds removes: only more test images do. Few seeds tell
the part of the images badly; a floor of 0.0 says that it was too small to be seen."""
_PILOT = """\
Planned cautiously: the noise between runs is taken at the upper 80 % limit that these few seeds
allow."""
_PLAIN = """\
Planned with the noise between runs as it was estimated; from few seeds that is as often too small
as too large, and `--pilot` plans with its upper 80 % limit."""


def page(plans: Sequence[Planned], wanted: PowerOptions, folder: str) -> str:
    """One table for each condition, and what was left out of it."""
    parts = [f"# What {folder} can find", "", _READING, "", _PILOT if wanted.pilot else _PLAIN, ""]
    for plan in plans:
        parts += [f"## {plan.title}", "", _test(plan), ""]
        parts += [markdown(_rows(plan.hardest, plan.goal))]
        if plan.same:
            parts += [f"Left out, the same function as the baseline here: {_list(plan.same)}.", ""]
        if plan.gaps:
            parts += ["Could not be looked at:", "", *(f"- {gap}" for gap in plan.gaps), ""]
    return "\n".join(parts).rstrip() + "\n"


def long_rows(plans: Sequence[Planned]) -> list[Row]:
    """One row for each contrast, reference and set of tasks, all digits."""
    return [_long_row(plan.title, one, plan.goal) for plan in plans for one in plan.outlooks]


def _test(plan: Planned) -> str:
    pairs = dict.fromkeys((one.method, one.reference) for one in plan.outlooks)
    against: dict[str, list[str]] = {}
    for method, reference in pairs:
        against.setdefault(method, []).append(reference)
    told = "; ".join(f"{name} against {' and '.join(refs)}" for name, refs in against.items())
    count = plan.goal.contrasts
    corrected = f"corrected for {count} contrasts" if count > 1 else "for a single contrast"
    return f"Two-sided test at 5 %, {corrected}: {told}."


def _rows(outlooks: Sequence[Outlook], goal: Goal) -> list[Row]:
    overs = dict.fromkeys(one.over for one in outlooks)
    return [_row([one for one in outlooks if one.over == over], goal) for over in overs]


def _row(here: Sequence[Outlook], goal: Goal) -> Row:
    first = here[0]
    name = f"{first.over} ({first.tasks} tasks)" if first.tasks > 1 else first.over
    ahead = {
        f"{seeds} seeds": _spread([one.mde_at[column] for one in here])
        for column, seeds in enumerate(AT_SEEDS)
    }
    return {
        "over": name,
        "contrasts": str(len(here)),
        "images": str(first.images),
        "seeds": _range([one.seeds for one in here]),
        "MDE now": _spread([one.mde for one in here]),
        **ahead,
        "for ever": _spread([one.floor for one in here]),
        f"seeds for {goal.effect:g}": _seeds(here, goal),
    }


def _spread(values: Sequence[float]) -> str:
    return f"{np.median(values):.1f} ({max(values):.1f})"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _seeds(here: Sequence[Outlook], goal: Goal) -> str:
    """The median and the largest number of seeds; in words where no number is enough."""
    counts = sorted(math.inf if one.needed is None else one.needed for one in here)
    middle = counts[len(counts) // 2]
    floors = [one.floor for one in here]
    return f"{_count(middle, np.median(floors), goal)} ({_count(counts[-1], max(floors), goal)})"


def _count(seeds: float, floor: float, goal: Goal) -> str:
    if math.isfinite(seeds):
        return f"{seeds:.0f}"
    return "never" if floor > goal.effect else f"> {MOST}"


def _long_row(title: str, one: Outlook, goal: Goal) -> Row:
    return {
        "condition": title,
        "method": one.method,
        "reference": one.reference,
        "over": one.over,
        "n_tasks": str(one.tasks),
        "n_seeds": str(one.seeds),
        "n_images": str(one.images),
        "contrasts": str(goal.contrasts),
        "pilot": str(goal.pilot).lower(),
        "mde": f"{one.mde:.6f}",
        **{
            f"mde_at_{seeds}_seeds": f"{mde:.6f}"
            for seeds, mde in zip(AT_SEEDS, one.mde_at, strict=True)
        },
        "floor": f"{one.floor:.6f}",
        "effect": f"{goal.effect:g}",
        "seeds_needed": "" if one.needed is None else str(one.needed),
    }


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
