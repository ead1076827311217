"""`tables/answer`: in up to thirteen sentences who leads, where, at what cost and how sure it is.

Every sentence follows from a verdict or gives a mean and says so. Where no test was made, no method
is called better than another.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fusionbench.records.cost import CostRecord
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis import Analysis
from fusionbench.report.contrasts import ContrastRow, Scope
from fusionbench.report.cost_table import over_encoder
from fusionbench.report.leaderboard import added_parameters, ranked, role
from fusionbench.report.page import Material, Page
from fusionbench.report.power import MOST, UNREACHABLE, seeds_for_a_point
from fusionbench.report.tables import Row, cell, conditions, effect_text, interval, points
from fusionbench.stats.estimate import FEWEST_REPLICATES
from fusionbench.stats.power import LEVEL, above_chance
from fusionbench.stats.verdicts import Verdict

MOST_NAMES = 4
"""Names in one sentence; the others are counted."""
MOST_TIED = 8
"""More methods that cannot be told apart are not named."""
BETTER = (Verdict.BETTER, Verdict.SLIGHTLY_BETTER)
WORSE = (Verdict.WORSE, Verdict.SLIGHTLY_WORSE)
_SINGLE = ("layer", "best_single", "last", "last_norm", "penultimate")
"""Methods that read one layer."""
_RANDOM = "random_layers"
_CHOSEN = " (the layer with the best val score, chosen once a task, which no interval covers)"


def answer_page(report: Material) -> Page:
    """The sentences of each condition; its title stands above if there are several."""
    texts, rows = [], list[Row]()
    several = len(report.analyses) > 1
    for number, analysis in enumerate(report.analyses):
        needs = _needs(report, analysis)
        sentences = list(answer(analysis, report.profiles, needs))
        sentences += planted_sentence(report.planted) if number == 0 else []
        lines = [f"- {sentence}" for sentence in sentences]
        heading = [f"### {analysis.table.condition.title}", ""] if several else []
        texts.append("\n".join([*heading, *lines]) + "\n")
        rows += [
            {"number": number, "sentence": sentence.replace("`", "")} | conditions(analysis.table)
            for number, sentence in enumerate(sentences, start=1)
        ]
    return Page(markdown="\n".join(texts), rows=rows)


def _needs(report: Material, analysis: Analysis) -> list[int | None]:
    """Runs that each undecided contrast on the suite needs for one point; empty without a test."""
    undecided = any(row.answer.verdict == Verdict.UNDECIDED for row in analysis.of("planned"))
    if not (analysis.testable and undecided and analysis.scopes[0].tasks):
        return []
    planned = analysis.of("planned")
    suite = [row for row in planned if row.scope.level == "suite"]
    open_ = [row.contrast for row in suite if row.answer.verdict == Verdict.UNDECIDED]
    return seeds_for_a_point(report.results, analysis.table, open_, planned=len(planned))


def answer(
    analysis: Analysis, profiles: Sequence[CostRecord], needs: Sequence[int | None] = ()
) -> Iterator[str]:
    """The sentences of one condition; Markdown with names in backquotes.

    `needs`: the runs that each undecided contrast needs to find one point, None for no number.
    """
    suite = analysis.scopes[0]
    if not suite.tasks:
        yield "No task of the suite was run, or none is above chance: no method is compared."
        return
    yield from _leaders(analysis, suite)
    yield from _single_layers(analysis, suite)
    yield from _controls(analysis, suite)
    yield from _groups(analysis)
    yield from _cost(analysis, profiles)
    yield from _certainty(analysis, needs)
    yield from _apart(analysis, suite)


def planted_sentence(tables: Sequence[ScoreTable]) -> list[str]:
    """Who scores highest on each task whose right answer is known; empty without such tasks."""
    parts = []
    for table in tables:
        for column, task in enumerate(table.tasks):
            cells = [(cell(table, row, column), name) for row, name in enumerate(table.methods)]
            done = [(one.mean, name) for one, name in cells if one.runs]
            if not done:
                continue
            mean, name = max(done)
            known = f"{points(mean, sign=False)} % (chance {points(task.chance, sign=False)})"
            guessed = f"none of {_count(len(done), 'method')} above chance, at most"
            luck = _by_luck([one for one, _ in done], task.chance, task.examples)
            parts.append(f"`{task.name}` {guessed if luck else f'`{name}`'} {known}")
    if not parts:
        return []
    return [f"Highest on planted tasks, whose answer is known: {', '.join(parts)}."]


def _by_luck(means: Sequence[float], chance: float, examples: int) -> bool:
    """Whether the highest of so many guessers may score as much: its corrected p is above 5 %."""
    return examples < 1 or above_chance(np.array(means), chance, examples) > LEVEL


def leaders(analysis: Analysis) -> list[ContrastRow]:
    """Planned contrasts on the suite against the baseline that are decided for the method.

    The largest difference first.
    """
    found = [row for row in _planned(analysis) if row.answer.verdict in BETTER]
    return sorted(found, key=_difference, reverse=True)


def _planned(analysis: Analysis, *, others: bool = False) -> list[ContrastRow]:
    """Planned contrasts on the suite with the study's baseline, or all other planned ones."""
    baseline = analysis.plan.baseline
    return [
        row
        for row in analysis.of("planned")
        if (row.scope.level == "suite" and row.contrast.baseline == baseline) != others
    ]


def _difference(row: ContrastRow) -> float:
    estimate = row.measured.estimate
    return 0.0 if estimate is None else float(estimate.value)


def _leaders(analysis: Analysis, suite: Scope) -> Iterator[str]:
    baseline, planned = analysis.plan.baseline, _planned(analysis)
    on = f"the {_count(len(suite.tasks), 'task')} of the suite"
    if baseline not in analysis.table.methods:
        yield f"The baseline `{baseline}` was not run: no method is compared with it."
        return
    if not analysis.testable:
        yield (
            f"No method is shown to be better than `{baseline}` on {on}: a test needs "
            f"{FEWEST_REPLICATES} runs of each method."
        )
        return
    found, runs = leaders(analysis), len(analysis.table.seeds)
    if not planned:
        yield f"The study plans no comparison with `{baseline}`: all differences are exploratory."
    elif found:
        verb = "is" if len(found) == 1 else "are"
        named = _named(found, runs, analysis.plan.suite_margin)
        yield (
            f"On {on} {named} {verb} better than `{baseline}` and than the matched control, "
            f"where there is one ({len(found)} of {'; '.join(_judged(planned))})."
        )
    else:
        judged, *silent = _judged(planned)
        more = f" ({silent[0]})" if silent else ""
        yield (
            f"On {on} none of {judged} is shown to be better than `{baseline}` and than "
            f"its matched control, where there is one{more}."
        )
    if worse := [row for row in planned if row.answer.verdict in WORSE]:
        yield f"Worse than `{baseline}`: {_named(sorted(worse, key=_difference), runs)}."
    if against := list(_against_others(analysis)):
        yield f"Other planned comparisons: {'; '.join(against)}."


def _judged(planned: Sequence[ContrastRow]) -> list[str]:
    """`3 planned methods`, `5 more have no verdict yet`: they or their control were not run."""
    silent = sum(bool(row.question.silent) for row in planned)
    text = _count(len(planned) - silent, "planned method")
    have = "has" if silent == 1 else "have"
    return [text, f"{silent} more {have} no verdict yet"] if silent else [text]


def _against_others(analysis: Analysis) -> Iterator[str]:
    """Decided contrasts with another method than the baseline, or on a group of tasks."""
    words = {
        **dict.fromkeys(BETTER, "is better than"),
        **dict.fromkeys(WORSE, "is worse than"),
        Verdict.EQUIVALENT: "is equivalent to",
    }
    for row in _planned(analysis, others=True):
        word = next((text for name, text in words.items() if name == row.answer.verdict), None)
        if word:
            pair = f"`{row.contrast.method}` {word} `{row.contrast.baseline}`"
            where = "" if row.scope.level == "suite" else f" on {row.scope.name} tasks"
            more = f"{_part(row, len(analysis.table.seeds))}{_beside(analysis, row)}"
            yield f"{pair}{where} ({interval(row.measured.estimate)}{more})"


def _beside(analysis: Analysis, row: ContrastRow) -> str:
    """`; against `baseline` +0.2 [-0.6, +1.0]` for a method without a planned contrast with it."""
    method, baseline = row.contrast.method, analysis.plan.baseline
    if any(one.contrast.method == method for one in _planned(analysis)):
        return ""
    found = analysis.against_baseline().get((method, row.scope))
    if found is None or found.measured.estimate is None or row.contrast.baseline == baseline:
        return ""
    return f"; against `{baseline}` {interval(found.measured.estimate)}, exploratory"


def _single_layers(analysis: Analysis, suite: Scope) -> Iterator[str]:
    """What one layer gives, and how many methods that fuse layers have a higher mean.

    Methods with fewer runs than others are left out, and so is what reads one layer in another way.
    """
    table, order = analysis.table, ranked(analysis, suite)
    runs = {row: analysis.suite[row, suite].runs for row in order}
    complete = [row for row in order if runs[row] == max(runs.values())]
    few = len(order) - len(complete)
    order, methods = complete, table.methods
    single = [row for row in order if methods[row].partition("[")[0] in _SINGLE]
    fused = [row for row in order if row not in single and not _reads_one_layer(table, row)]
    others = [row for row in fused if role(analysis, row) != "control"]
    if not single or not others:
        return
    name, best = methods[single[0]], analysis.suite[single[0], suite]
    chosen = _CHOSEN if name == "best_single" else ""
    higher = sum(analysis.suite[row, suite].mean > best.mean for row in others)
    way = f"{points(best.mean, sign=False)} % of the way from chance to all right"
    yield (
        f"Of the methods that read one layer, `{name}`{chosen} has the highest mean, "
        f"{way if best.mean > 0 else 'not above chance'}; {higher} of "
        f"{_count(len(others), 'other')}, controls aside{_left_out(few)}, {_have(higher)} a higher "
        "mean (means, no test)."
    )
    yield from _random_layers(analysis, suite)


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _left_out(few: int) -> str:
    return f" ({few} with fewer runs left out)" if few else ""


def _reads_one_layer(table: ScoreTable, method: int) -> bool:
    """Whether each run of a method that is fed by the frozen encoder alone reads a single layer."""
    done = [record for record in table.row(method) if record.taps]
    read = [{layer for tap in record.taps for layer in tap} for record in done]
    return bool(done) and not done[0].in_encoder and all(len(layers) == 1 for layers in read)


def _random_layers(analysis: Analysis, suite: Scope) -> Iterator[str]:
    """What layers drawn at random give: whether a gain speaks for a method's choice of layers."""
    methods, baseline = analysis.table.methods, analysis.plan.baseline
    drawn = analysis.against_baseline().get((_RANDOM, suite))
    if drawn is None or drawn.measured.estimate is None:
        return
    mean = analysis.suite[methods.index(_RANDOM), suite].mean
    names = dict.fromkeys(row.contrast.method for row in _planned(analysis))
    known = [name for name in names if name in methods]
    below = [name for name in known if analysis.suite[methods.index(name), suite].mean < mean]
    yield (
        f"`{_RANDOM}`, a join of layers drawn at random{_drawn(analysis)}, differs from "
        f"`{baseline}` by "
        f"{interval(drawn.measured.estimate)} (exploratory): a gain below that does not speak for "
        f"a method's choice of layers. {len(below)} of {_count(len(known), 'planned method')} "
        f"{_have(len(below))} a lower mean (means, no test)."
    )


def _drawn(analysis: Analysis) -> str:
    """The hidden states in brackets where all runs have the same, since no interval covers that."""
    row = analysis.table.methods.index(_RANDOM)
    taps = {record.taps for record in analysis.table.row(row) if record.status == "done"}
    states = [f"hs[{layer}]" for tap in next(iter(taps), ()) for layer in tap]
    return f" (one draw for all runs: {', '.join(states)})" if len(taps) == 1 and states else ""


def _controls(analysis: Analysis, suite: Scope) -> Iterator[str]:
    """What the best control reaches without the part that it lacks, and who has a higher mean."""
    methods, order = analysis.table.methods, ranked(analysis, suite)
    controls = [row for row in order if role(analysis, row) == "control"]
    others = [row for row in order if not role(analysis, row)]
    if not controls or not others:
        return
    name, mean = methods[controls[0]], analysis.suite[controls[0], suite].mean
    found = analysis.against_baseline().get((name, suite))
    if found is None or found.measured.estimate is None:
        return
    higher = sum(analysis.suite[row, suite].mean > mean for row in others)
    yield (
        f"Of {_count(len(controls), 'control')} `{name}` has the highest mean, "
        f"{points(mean, sign=False)} % of the way from chance to all right "
        f"({interval(found.measured.estimate)} from `{analysis.plan.baseline}`, exploratory"
        f"{_part(found, len(analysis.table.seeds))}); {higher} of "
        f"{_count(len(others), 'other method')} {_have(higher)} a higher mean (means, no test)."
    )


def _groups(analysis: Analysis) -> Iterator[str]:
    """By kind of task, from the exploratory tests."""
    parts = []
    for scope in analysis.scopes:
        if scope.level != "group":
            continue
        rows = [row for row in analysis.of("exploratory") if row.scope == scope]
        higher = [row for row in rows if row.answer.verdict == Verdict.HIGHER]
        tested = sum(row.answer.p is not None for row in rows)
        if higher:
            top = max(higher, key=_difference)
            parts.append(
                f"on {_count(len(scope.tasks), f'{scope.name} task')} {len(higher)} of {tested} "
                f"methods are higher, most `{top.contrast.method}` "
                f"({interval(top.measured.estimate)})"
            )
        elif tested:
            parts.append(
                f"on {_count(len(scope.tasks), f'{scope.name} task')} none of {tested} is higher"
            )
    if parts:
        yield (
            f"Against `{analysis.plan.baseline}`, exploratory (Benjamini-Hochberg over all): "
            f"{'; '.join(parts)}."
        )


def _cost(analysis: Analysis, profiles: Sequence[CostRecord]) -> Iterator[str]:
    """What the leaders add: parameters, and time over the bare encoder."""
    found = leaders(analysis)
    if not found:
        return
    parts = []
    for row in found[:MOST_NAMES]:
        method = row.contrast.method
        at = analysis.table.methods.index(method)
        added = added_parameters(analysis, at) or "an unknown number of"
        time = over_encoder(profiles, analysis.table, at)
        shown = f"{time.share:+.0f} % time ({time.device})" if time else "time not measured"
        parts.append(f"`{method}` {added} parameters, {shown}")
    yield (
        f"Added to the whole model of `{analysis.plan.baseline}`, in time to an encoder that runs "
        f"as many blocks: {'; '.join(parts)}."
    )


def _certainty(analysis: Analysis, needs: Sequence[int | None]) -> Iterator[str]:
    planned = [row for row in analysis.of("planned") if row.answer.p is not None]
    if not planned:
        return
    runs = sorted({len(row.measured.seeds) for row in planned})
    least = f"{runs[0]} to " if len(runs) > 1 else ""
    examples = max(row.measured.examples for row in planned)
    undecided = [row for row in planned if row.answer.verdict == Verdict.UNDECIDED]
    margin = points(analysis.plan.suite_margin, sign=False)
    yield (
        f"How sure: {_count(len(analysis.of('planned')), 'planned contrast')} of "
        f"{least}{_count(runs[-1], 'run')} and {examples:,} test examples (Holm, 5 %), intervals "
        f"of 95 %; {len(planned) - len(undecided)} decided with a margin of {margin} points."
        f"{_on_new_tasks(planned)}"
    )
    if below := [row for row in undecided if _below_control(row)]:
        shown = [f"`{row.contrast.method}`{_from_control(row)}" for row in below[:MOST_NAMES]]
        yield (
            "Undecided, but below the matched control with the whole interval (exploratory): "
            f"{', '.join(shown)}."
        )
    if undecided:
        most = len(analysis.table.seeds)
        shown = [
            f"{_pair(row)} ({effect_text(row.answer.mde)}{_part(row, most)}{_from_control(row)})"
            for row in undecided[:MOST_NAMES]
        ]
        more = f" and {len(undecided) - MOST_NAMES} more" if len(undecided) > MOST_NAMES else ""
        yield (
            "Undecided, with the smallest difference in points that would have been found in 4 of "
            f"5 such studies: {', '.join(shown)}{more}{_one_point(needs)}."
        )


def _on_new_tasks(planned: Sequence[ContrastRow]) -> str:
    """How many planned contrasts would hold for other tasks of the same families."""
    tested = [(row, p) for row in planned if (p := row.new_tasks.p_adjusted) is not None]
    if not tested:
        return ""
    found = [row for row, p in tested if p < LEVEL]
    known = f" ({', '.join(_pair(row) for row in found[:MOST_NAMES])})" if found else ""
    return (
        " Verdicts are for these tasks: for new tasks of such families "
        f"{len(found) or 'none'} of {_count(len(tested), 'planned contrast')} "
        f"{'is' if len(found) < 2 else 'are'} significant{known}."
    )


def _one_point(needs: Sequence[int | None]) -> str:
    """`; one point takes 4 to 31 runs to find, and is not reachable within 200 in 2 of these 5`."""
    known = sorted(need for need in needs if need is not None)
    text = ""
    if known:
        runs = f"{known[0]} to {known[-1]}" if known[0] < known[-1] else f"{known[0]}"
        text = f"; one point takes {runs} runs to find"
    if beyond := len(needs) - len(known):
        of = f"{beyond} of these {len(needs)}" if known else "any of them"
        start = ", and" if known else "; one point"
        text += f"{start} is {UNREACHABLE} within {MOST} runs in {of}"
    return text


def _pair(row: ContrastRow) -> str:
    over = f" on {row.scope.name}" if row.scope.level != "suite" else ""
    return f"`{row.contrast.method}` against `{row.contrast.baseline}`{over}"


def _apart(analysis: Analysis, suite: Scope) -> Iterator[str]:
    """The methods that cannot be told from the best."""
    column = analysis.columns[suite]
    if not column.tied:
        return
    methods = analysis.table.methods
    left = _left_out(len(methods) - len(analysis.table.leaky) - len(column.compared))
    best = sorted(methods[row] for row in column.best)
    compared = f"{len(column.compared)} methods with the same {column.seeds} runs{left}"
    if len(column.tied) == len(column.best) == 1:
        yield f"`{best[0]}` has the highest mean of the {compared}, told apart from all."
        return
    tied = sorted(methods[row] for row in column.tied)
    named = f": {', '.join(f'`{name}`' for name in tied)}" if len(tied) <= MOST_TIED else ""
    yield (
        f"Of the {compared} `{best[0]}` has the highest mean in these runs; with 95 % probability "
        f"the best of them is one of {len(tied)} that are not clearly below another{named}."
    )


def _named(rows: Sequence[ContrastRow], planned: int, margin: float = 0.0) -> str:
    """`a` (+1.2 [+0.4, +2.0]), `b` (...) and 2 more.

    Says what is less than the margin, and what rests on fewer than the `planned` runs.
    """
    shown = [
        f"`{row.contrast.method}` ({interval(row.measured.estimate)}"
        f"{', less than the margin' if abs(_difference(row)) < margin else ''}"
        f"{_part(row, planned)})"
        for row in rows[:MOST_NAMES]
    ]
    if len(rows) > MOST_NAMES:
        return f"{', '.join(shown)} and {len(rows) - MOST_NAMES} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _part(row: ContrastRow, planned: int) -> str:
    """`, 4 of 10 runs` for a contrast whose other runs are still to come."""
    runs = len(row.measured.seeds)
    return f", {runs} of {_count(planned, 'run')}" if runs < planned else ""


def _from_control(row: ContrastRow) -> str:
    """`; from its control `a` +0.9 [+0.1, +1.6]`, which must be beaten too; empty without one."""
    control, found = row.contrast.control, row.to_control
    if found is None or found.estimate is None or control == row.contrast.baseline:
        return ""
    return f"; from its control `{control}` {interval(found.estimate)}"


def _below_control(row: ContrastRow) -> bool:
    """Whether the 95 % interval of the difference from the control lies below zero."""
    found = row.to_control
    if found is None or found.estimate is None or not _from_control(row):
        return False
    return float(found.estimate.interval()[1]) < 0


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
