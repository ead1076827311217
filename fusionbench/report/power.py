"""Minimum detectable effects (MDE) of a study's contrasts: with its seeds, with more, in the limit.

The variance of a difference has a part that more seeds shrink and one that only more images do;
both are estimated from the records at hand (the pilot), see `stats.power`. A contrast of a study
has two references, the baseline and the method's matched control, and "better" needs both, so the
larger MDE counts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusionbench.api.errors import UserError, unknown
from fusionbench.records.pairs import (
    NotComparable,
    Pair,
    Results,
    combined,
    common,
    minus,
    scaled,
    shared_runs,
    task_weights,
)
from fusionbench.records.scores import ScoreTable
from fusionbench.report.contrasts import make_plan, resolved
from fusionbench.report.tables import Row, aggregates, csv_row, effect_text, markdown
from fusionbench.stats import verdicts
from fusionbench.stats.crossed import guard, t_over_seeds
from fusionbench.stats.estimate import Estimate
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.power import (
    ENDLESS_SEEDS,
    pilot_parts,
    seeds_needed,
    shared_suite_at,
    suite_at,
    variance_parts,
)
from fusionbench.stats.suite import block_components, seed_sums, shared_image_blocks
from fusionbench.stats.verdicts import Correction, Question
from fusionbench.study.contrasts import Contrast

AT_SEEDS = (5, 10, 20)
FEWEST, MOST = 4, 200
"""Range of the search for the number of seeds: no test exists below 4."""
UNREACHABLE = "not reachable"
"""Where no number of seeds is enough on these test images."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The effect to be detected and how it will be tested."""

    effect: float
    """True difference to be found with 80 % power, in points."""
    contrasts: int
    """Size of the correction group."""
    pilot: bool
    """Plan with the upper 80 % limit of the pilot's seed variance."""

    def mde(self, estimate: Estimate) -> float:
        """The estimate's MDE in points at the first Holm step."""
        question = Question(references=(estimate,))
        (answer,) = verdicts.judge([question], Correction.HOLM, tests=self.contrasts)
        return math.nan if answer.mde is None else 100 * answer.mde


@dataclass(frozen=True, kw_only=True)
class PowerEstimate:
    """MDE of one contrast over one task or several, in points."""

    method: str
    reference: str
    over: str
    tasks: int
    seeds: int
    images: int
    mde: float
    mde_at: tuple[float, ...]
    """With each number of seeds in `AT_SEEDS`."""
    floor: float
    """With infinitely many seeds on these images."""
    needed: int | None
    """Seeds for the goal's effect; None above `MOST`."""
    identical: bool
    """The two methods scored alike on every example: nothing to plan for."""
    contrast: Contrast
    """The contrast that this reference belongs to."""


def power_estimate(
    results: Results,
    table: ScoreTable,
    contrast: Contrast,
    reference: str,
    tasks: Sequence[int],
    *,
    over: str,
    goal: Goal,
) -> PowerEstimate:
    """MDE of the contrast's method minus a reference over some tasks. Raises NotComparable."""
    rows = table.methods.index(contrast.method), table.methods.index(reference)
    pairs = common([results.pair(table, minus(*rows), task) for task in tasks])
    weights = task_weights(table, tasks)
    now = combined(pairs, weights)
    expected = _expected(pairs, scaled(pairs, weights), pilot=goal.pilot)
    floor = goal.mde(expected(ENDLESS_SEEDS))
    return PowerEstimate(
        method=contrast.method,
        reference=reference,
        over=over,
        tasks=len(tasks),
        seeds=len(pairs[0].seeds),
        images=sum(len(np.unique(pair.groups)) for pair in pairs),
        mde=goal.mde(now),
        mde_at=tuple(goal.mde(expected(seeds)) for seeds in AT_SEEDS),
        floor=floor,
        needed=None
        if floor > goal.effect
        else needed(lambda n: goal.mde(expected(n)), goal.effect),
        identical=not any(pair.differences.any() for pair in pairs),
        contrast=contrast,
    )


def needed(mde_at: Callable[[int], float], effect: float) -> int | None:
    """Fewest seeds whose MDE is at most `effect`: doubled until enough, then one by one."""
    low = high = FEWEST
    while mde_at(high) > effect:
        if high == MOST:
            return None
        low, high = high, min(2 * high, MOST)
    return seeds_needed(mde_at, effect, fewest=low, most=high)


def _expected(
    pairs: Sequence[Pair], tasks: Sequence[TaskScores], *, pilot: bool
) -> Callable[[int], Estimate]:
    """The estimate to be expected from a number of seeds on the same images."""
    blocks = [block_components(block) for block in shared_image_blocks(tasks)]
    parts = [(pilot_parts if pilot else variance_parts)(block) for block in blocks]
    items = [int(block.items) for block in blocks]
    if not shared_runs(pairs):
        return lambda seeds: suite_at(parts, items, seeds=seeds)
    runs = t_over_seeds(seed_sums(tasks))
    factor = guard(runs.replicates) if pilot else 1.0
    one_run = np.asarray(factor * runs.replicates * runs.variance)
    return lambda seeds: shared_suite_at(parts, items, run_variance=one_run, seeds=seeds)


@dataclass(frozen=True, kw_only=True)
class PowerOptions:
    """Options of `fusionbench power`."""

    effect: float = 1.0
    """Points."""
    pilot: bool = False
    baseline: str = ""
    """Empty: the study's."""
    methods: tuple[str, ...] = ()
    """Empty: the study's contrasts."""
    contrasts: int = 0
    """Size of the correction group; 0: the number of planned contrasts."""


@dataclass(frozen=True, kw_only=True)
class PowerPlan:
    """The power estimates of one condition."""

    title: str
    goal: Goal
    estimates: tuple[PowerEstimate, ...]
    """One for each contrast, reference and set of tasks."""
    same: tuple[tuple[str, str], ...]
    """Methods and their references that scored alike on every example."""
    gaps: tuple[str, ...]
    """Why a contrast has no estimate."""

    @property
    def hardest(self) -> tuple[PowerEstimate, ...]:
        """One for each contrast and set of tasks: the worse of its references in every number."""
        grouped: dict[tuple[str, Contrast], list[PowerEstimate]] = {}
        for one in self.estimates:
            grouped.setdefault((one.over, one.contrast), []).append(one)
        return tuple(_worst(found) for found in grouped.values())


def planned(results: Results, wanted: PowerOptions) -> list[PowerPlan]:
    """One plan for each table with something to compare.

    Raises UserError for a name that the results do not hold, and if there is nothing to compare.
    """
    known = sorted({name for table in results.tables for name in table.methods})
    for name in (wanted.baseline, *wanted.methods):
        if name and name not in known:
            raise unknown("method", name, known, f"these results hold: {', '.join(known)}")
    found = [_table(results, table, wanted) for table in results.tables]
    plans = [plan for plan in found if plan.estimates or plan.same or plan.gaps]
    if not plans:
        raise UserError("nothing to compare with the baseline", "run another method, too")
    return plans


def _table(results: Results, table: ScoreTable, wanted: PowerOptions) -> PowerPlan:
    contrasts = _contrasts(results, table, wanted)
    goal = Goal(
        effect=wanted.effect,
        contrasts=wanted.contrasts or max(len(contrasts), 1),
        pilot=wanted.pilot,
    )
    estimates: list[PowerEstimate] = []
    gaps: list[str] = []
    for contrast, reference in _pairs(table, contrasts):
        for over, tasks in _overs(table):
            try:
                one = power_estimate(
                    results, table, contrast, reference, tasks, over=over, goal=goal
                )
                estimates.append(one)
            except NotComparable as gap:
                gaps.append(f"{contrast.method} against {reference}, {over}: {gap}")
    same = Counter((one.method, one.reference) for one in estimates if one.identical)
    everywhere = [pair for pair, count in same.items() if count % len(_overs(table)) == 0]
    return PowerPlan(
        title=table.condition.title,
        goal=goal,
        estimates=tuple(one for one in estimates if not one.identical),
        same=tuple(sorted(everywhere)),
        gaps=tuple(dict.fromkeys(gaps)),
    )


def seeds_for_a_point(
    results: Results, table: ScoreTable, contrasts: Sequence[Contrast], *, planned: int
) -> list[int | None]:
    """Seeds that each contrast needs on the suite to find a difference of one point.

    `planned`: all contrasts of the correction. Of a baseline and a control the larger number
    counts; None where no number up to `MOST` is enough. Contrasts that cannot be compared are left
    out.
    """
    goal = Goal(effect=1.0, contrasts=max(planned, 1), pilot=False)
    suite = [int(column) for column in np.flatnonzero(table.suite)]
    found: list[int | None] = []
    for contrast in contrasts:
        pairs = _pairs(table, [resolved(table, contrast)[0]])
        try:
            needs = [
                power_estimate(results, table, one, reference, suite, over="suite", goal=goal)
                for one, reference in pairs
            ]
        except NotComparable:
            continue
        if needs := [one for one in needs if not one.identical]:
            found.append(_worst(needs).needed)
    return found


def _contrasts(results: Results, table: ScoreTable, wanted: PowerOptions) -> list[Contrast]:
    """The study's contrasts; where methods or a baseline were named, those against it."""
    runs = results.store.history.requests()
    plan = make_plan(table, runs)
    if not (wanted.baseline or wanted.methods):
        return [resolved(table, contrast)[0] for contrast in plan.contrasts]
    baseline = wanted.baseline or plan.baseline
    methods = wanted.methods or table.methods
    return [Contrast(method=name, baseline=baseline) for name in methods if name != baseline]


def _pairs(table: ScoreTable, contrasts: Sequence[Contrast]) -> Iterator[tuple[Contrast, str]]:
    """Each contrast with its references, of those that this table has."""
    for one in dict.fromkeys(contrasts):
        for reference in dict.fromkeys((one.baseline, one.control)):
            if {one.method, reference} <= set(table.methods):
                yield one, reference


def _overs(table: ScoreTable) -> list[tuple[str, list[int]]]:
    """The suite, its groups and every task, each with its columns."""
    return [*_sums(table), *((task.name, [t]) for t, task in enumerate(table.tasks))]


def _sums(table: ScoreTable) -> Iterator[tuple[str, list[int]]]:
    for name, keep in aggregates(table):
        columns = [int(column) for column in np.flatnonzero(keep)]
        if len(columns) > 1:
            yield name, columns


def _worst(found: Sequence[PowerEstimate]) -> PowerEstimate:
    counts = [one.needed for one in found]
    return replace(
        found[0],
        reference=" and ".join(one.reference for one in found),
        seeds=min(one.seeds for one in found),
        mde=max(one.mde for one in found),
        mde_at=tuple(max(mdes) for mdes in zip(*(one.mde_at for one in found), strict=True)),
        floor=max(one.floor for one in found),
        needed=None if None in counts else max(count for count in counts if count is not None),
    )


_READING = """\
MDE: the true difference that a study finds with 80 % power, in points; over several tasks every
task counts the same between chance (0) and perfect (100). Each entry is the median over the
contrasts, the largest in brackets; of a baseline and a control the larger MDE counts. "Limit" is
the MDE with infinitely many seeds: only more test images lower it. Few seeds estimate it badly; 0.0
means that the variance between images was too small to be estimated."""
_PILOT = """\
Cautious plan: the variance between runs is the upper 80 % limit of its estimate from these
seeds."""
_PLAIN = """\
The variance between runs is its estimate from these seeds, which is as often too small as too
large; `--pilot` plans with its upper 80 % limit."""


def page(plans: Sequence[PowerPlan], wanted: PowerOptions, folder: str) -> str:
    """One table for each condition, and what was left out of it."""
    parts = [
        f"# Minimum detectable effects of {folder}",
        "",
        _READING,
        "",
        _PILOT if wanted.pilot else _PLAIN,
        "",
    ]
    for plan in plans:
        parts += [f"## {plan.title}", "", _test(plan), ""]
        parts += [markdown(_rows(plan.hardest, plan.goal))]
        if plan.same:
            alike = "Left out, since they scored as their reference on every example"
            pairs = ", ".join(f"`{one}` as `{other}`" for one, other in plan.same)
            parts += [f"{alike}: {pairs}.", ""]
        if plan.gaps:
            parts += ["Not comparable:", "", *(f"- {gap}" for gap in plan.gaps), ""]
    return "\n".join(parts).rstrip() + "\n"


def long_rows(plans: Sequence[PowerPlan]) -> list[Row]:
    """One row for each contrast, reference and set of tasks, all digits."""
    return [_long_row(plan.title, one, plan.goal) for plan in plans for one in plan.estimates]


def _test(plan: PowerPlan) -> str:
    against: dict[Contrast, dict[str, None]] = {}
    for one in plan.estimates:
        against.setdefault(one.contrast, {})[one.reference] = None
    compared = "; ".join(
        f"{contrast.method} against {' and '.join(refs)}" for contrast, refs in against.items()
    )
    count = plan.goal.contrasts
    corrected = f"corrected for {count} contrasts" if count > 1 else "for a single contrast"
    return f"Two-sided test at 5 %, {corrected}: {compared}."


def _rows(estimates: Sequence[PowerEstimate], goal: Goal) -> list[Row]:
    overs = dict.fromkeys(one.over for one in estimates)
    return [_row([one for one in estimates if one.over == over], goal) for over in overs]


def _row(here: Sequence[PowerEstimate], goal: Goal) -> Row:
    first = here[0]
    name = f"{first.over} ({first.tasks} tasks)" if first.tasks > 1 else first.over
    at_seeds = {
        f"{seeds} seeds": _spread([one.mde_at[column] for one in here])
        for column, seeds in enumerate(AT_SEEDS)
    }
    return {
        "over": name,
        "contrasts": str(len(here)),
        "images": str(first.images),
        "seeds": _range([one.seeds for one in here]),
        "MDE now": _spread([one.mde for one in here]),
        **at_seeds,
        "limit": _spread([one.floor for one in here]),
        f"seeds for {goal.effect:g}": _seeds(here, goal),
    }


def _spread(values: Sequence[float]) -> str:
    return _both(_shown(float(np.median(values))), _shown(max(values)))


def _shown(mde: float) -> str:
    """An MDE in points; no difference is larger than 100."""
    return effect_text(mde / 100)


def _both(middle: str, largest: str) -> str:
    """`1.2 (3.4)`; one of them where they are equal words."""
    return middle if middle == largest and not middle[0].isdigit() else f"{middle} ({largest})"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def _seeds(here: Sequence[PowerEstimate], goal: Goal) -> str:
    """The median and the largest number of seeds; in words where no number is enough."""
    counts = sorted(math.inf if one.needed is None else one.needed for one in here)
    middle = counts[len(counts) // 2]
    floors = [one.floor for one in here]
    largest = _count(counts[-1], max(floors), goal)
    return _both(_count(middle, float(np.median(floors)), goal), largest)


def _count(seeds: float, floor: float, goal: Goal) -> str:
    if math.isfinite(seeds):
        return f"{seeds:.0f}"
    return UNREACHABLE if floor > goal.effect else f"over {MOST}"


def _long_row(title: str, one: PowerEstimate, goal: Goal) -> Row:
    at = zip(AT_SEEDS, one.mde_at, strict=True)
    return csv_row(
        {
            "condition": title,
            "method": one.method,
            "baseline": one.contrast.baseline,
            "reference": one.reference,
            "over": one.over,
            "n_tasks": one.tasks,
            "n_seeds": one.seeds,
            "n_images": one.images,
            "contrasts": goal.contrasts,
            "pilot": goal.pilot,
            "mde": one.mde,
            **{f"mde_at_{seeds}_seeds": mde for seeds, mde in at},
            "floor": one.floor,
            "effect": f"{goal.effect:g}",
            "seeds_needed": one.needed,
        }
    )
