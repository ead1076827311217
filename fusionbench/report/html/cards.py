"""Cards of the HTML page: one for each method and one for each task, from records and sources.

What a method or task is comes from its declaration and the first docstring of its file, and only
for those that travel with the package, so that the same records give the same page everywhere.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape

from fusionbench.records.cell import CellRecord
from fusionbench.records.cost import CostRecord
from fusionbench.records.pictures import ExamplePictures
from fusionbench.records.references import Reference, references
from fusionbench.records.scores import ScoreTable
from fusionbench.registry.cards import MethodCard, TaskCard, arxiv_number
from fusionbench.registry.catalog import Catalog, read_catalog
from fusionbench.registry.discovery import BUILT_IN
from fusionbench.report.analysis import Analysis
from fusionbench.report.contrasts import control_of
from fusionbench.report.cost_table import large, over_encoder, profiles_of
from fusionbench.report.coverage import dead_tasks
from fusionbench.report.leaderboard import added_parts, added_text, ranked, role
from fusionbench.report.page import Material
from fusionbench.report.tables import cell, interval

_LICENCE = re.compile(r"\b(MIT|Apache-2\.0|BSD|CC[- ]BY[-A-Z]*[- ]?\d\.\d|CC0)\b")
_SHOWN = 8
"""Example pictures on the card of a task."""
_MOST_ANSWERS = 20
_BOX, _GAP, _LANE = 22, 4, 6


@dataclass(frozen=True, kw_only=True)
class ScoreLine:
    """Score of a method on one task or mean over several, and its difference from the baseline."""

    name: str
    score: str
    difference: str = ""
    aggregate: bool = False


@dataclass(frozen=True, kw_only=True)
class ConditionScores:
    """Scores of a method under one condition."""

    title: str
    baseline: str
    lines: Sequence[ScoreLine]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A method or a task on the page."""

    id: str
    name: str
    marks: str = ""
    """Roles and warnings, on the closed card."""
    about: str = ""
    text: str = ""
    """The docstring of its file: equations, source and licence."""
    link: str = ""
    """Address of the paper."""
    diagram: Markup = Markup()  # noqa: RUF009
    facts: Mapping[str, str] = field(default_factory=dict)
    scores: Sequence[ConditionScores] = ()
    traces: Mapping[str, Markup] = field(default_factory=dict)
    pictures: Sequence[tuple[Markup, str, str]] = ()
    """Picture, question and answer of some examples."""


def anchor(kind: str, name: str, taken: Iterable[str] = ()) -> str:
    """An id for the page: `method-mema-no_memory`, with a number if that is taken."""
    plain = f"{kind}-{re.sub(r'[^A-Za-z0-9_]+', '-', name).strip('-') or 'unnamed'}"
    known = set(taken)
    numbered = (plain if n == 1 else f"{plain}-{n}" for n in range(1, len(known) + 2))
    return next(one for one in numbered if one not in known)


@lru_cache(maxsize=1)
def _built_in() -> Catalog:
    return read_catalog()


@lru_cache(maxsize=256)
def _docstring(file: str) -> str:
    """The first docstring of a source file; empty without one."""
    try:
        return ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""


def method_cards(report: Material) -> list[Card]:
    """A card for each method with records, the highest mean of the first condition first."""
    names: dict[str, None] = {}
    for analysis in report.analyses:
        order = ranked(analysis, analysis.scopes[0], everything=True)
        names |= dict.fromkeys(analysis.table.methods[row] for row in order)
    names |= dict.fromkeys(name for table in report.planted for name in table.methods)
    known = {
        id(table): (_depth(report, table), dead_tasks(report.results, table))
        for table in _tables(report)
    }
    found: dict[str, Card] = {}
    for name in names:
        key = anchor("method", name, found)
        found[key] = _method(report, name, key, known)
    return list(found.values())


def _tables(report: Material) -> list[ScoreTable]:
    return [*(analysis.table for analysis in report.analyses), *report.planted]


OfTable = Mapping[int, tuple[int, Mapping[int, Sequence[str]]]]
"""Blocks of the encoder and what `dead_tasks` gives, by the `id` of the table."""


def _method(report: Material, name: str, key: str, known: OfTable) -> Card:
    places = [(a, a.table.methods.index(name)) for a in report.analyses if name in a.table.methods]
    tables = [a.table for a, _ in places] or [t for t in report.planted if name in t.methods]
    table, row = tables[0], tables[0].methods.index(name)
    records = table.row(row)
    depth, dead = known[id(table)]
    card = _built_in_card(records)
    text = _docstring(card.file) if card else ""
    paper = str(card.facts.get("paper", "")) if card else ""
    arxiv = arxiv_number(paper) or arxiv_number(text)
    return Card(
        id=key,
        name=name,
        marks="; ".join(_method_marks(places, row, dead)),
        about=card.about if card else "Not part of this package: its file is not read here.",
        text=text,
        link=f"https://arxiv.org/abs/{arxiv}" if arxiv else "",
        diagram=diagram(table, row, depth),
        facts={
            **_declared(card, paper, records, table, row),
            **(_cost(*places[0], report.profiles) if places else {}),
        },
        scores=[_scores(analysis, at) for analysis, at in places],
        traces=dict(_traces(records)),
    )


def _built_in_card(records: Sequence[CellRecord]) -> MethodCard | None:
    """The built-in method of these records, unless they are those of another's plug-in."""
    first = records[0]
    origin = str(first.provenance.get("method", BUILT_IN))
    card = _built_in().methods.get(first.spec.method)
    built_in = card is not None and card.source == BUILT_IN and origin in ("", BUILT_IN)
    return card if built_in else None


def _method_marks(
    places: Sequence[tuple[Analysis, int]], row: int, dead: Mapping[int, Sequence[str]]
) -> Iterator[str]:
    for analysis, at in places[:1]:
        if named := role(analysis, at):
            yield named
        if at_chance(analysis, at):
            yield "not above chance"
    if row in dead:
        yield f"dead on {', '.join(dead[row])}"


def at_chance(analysis: Analysis, row: int) -> bool:
    """Whether the interval of the mean over the suite reaches down to chance."""
    found = analysis.suite[row, analysis.scopes[0]]
    return bool(found.low <= 0)


def _declared(
    card: MethodCard | None,
    paper: str,
    records: Sequence[CellRecord],
    table: ScoreTable,
    row: int,
) -> dict[str, str]:
    """Facts of the declaration and of the records."""
    first = records[0]
    settings = sorted(first.spec.settings.items())
    facts = {"title": "", "paper": paper, "year": "", "parity": ""}
    if card:
        facts["title"] = card.title
        facts |= {key: str(card.facts.get(key, "")) for key in ("year", "parity")}
        facts["needs"] = str(card.facts.get("needs", "")) or "hidden states only"
    facts |= {
        "settings": ", ".join(f"{key}={value}" for key, value in settings),
        "matched control": control_of(table, row),
        "runs": "in the encoder" if first.in_encoder else "on cached hidden states",
        "version": str(first.spec.method_version),
    }
    return {key: value for key, value in facts.items() if value}


def _cost(analysis: Analysis, row: int, profiles: Sequence[CostRecord]) -> dict[str, str]:
    """What it adds to the baseline's whole model, and measured time and memory."""
    table, baseline = analysis.table, analysis.plan.baseline
    parts = added_parts(analysis, row)
    facts = {}
    if parts:
        shown = ", ".join(f"{part} {added_text(values)}" for part, values in parts.items())
        total = added_text([sum(one) for one in zip(*parts.values(), strict=True)])
        facts[f"parameters added to the whole model of {baseline}"] = f"{total} ({shown})"
    mine = profiles_of(profiles, table, row)
    counts = [one.flops_over_encoder for one in mine if one.flops_over_encoder is not None]
    flops = counts[0] if counts else None
    if flops is not None:
        facts["FLOPs of one image over the encoder"] = large(flops)
    time = over_encoder(profiles, table, row)
    if time is not None:
        facts["time over the encoder, inference"] = (
            f"{time.share:+.0f} % ({time.milliseconds:+.2f} ms a batch of {time.batch}, "
            f"{time.device})"
        )
    return facts


def _scores(analysis: Analysis, row: int) -> ConditionScores:
    """Means over tasks, then every task, each with the difference from the baseline."""
    table, known = analysis.table, analysis.against_baseline()
    lines = []
    for scope in analysis.scopes:
        found = known.get((table.methods[row], scope))
        aggregate = scope.level != "task"
        score = analysis.suite[row, scope] if aggregate else analysis.cells[row, scope.tasks[0]]
        count = f" ({len(scope.tasks)} tasks)" if aggregate else ""
        lines.append(
            ScoreLine(
                name=f"{scope.name}{count}",
                score=score.text,
                difference=interval(found.measured.estimate) if found else "",
                aggregate=aggregate,
            )
        )
    return ConditionScores(
        title=table.condition.title, baseline=analysis.plan.baseline, lines=lines
    )


def _depth(report: Material, table: ScoreTable) -> int:
    """Blocks of the encoder: from its profiles, else the last layer that a method reads alone."""
    for one in report.profiles:
        if one.conditions.encoder == table.condition.encoder and one.layers:
            return one.layers
    alone = [found.last for found in references(table).values()]
    read = [layer for record in table.cells.values() for tap in record.taps for layer in tap]
    return max(alone or read or [0])


def diagram(table: ScoreTable, row: int, depth: int) -> Markup:
    """Which hidden states a method reads, as SVG; those that are averaged share a line."""
    done = [record for record in table.row(row) if record.taps]
    if not done or not depth:
        return Markup()
    sets = list(dict.fromkeys(done[0].taps))
    places = [[_place(layer, depth) for layer in tap] for tap in sets]
    inside = done[0].in_encoder
    # A method inside the encoder starts from stored states and sees all blocks.
    read = set(range(depth + 1)) if inside else {place for tap in places for place, _ in tap}
    words = _reading(places, done[0].taps, inside=inside)
    width, top = (depth + 1) * (_BOX + _GAP), 16 if inside else 2
    lanes = [sorted({place for place, _ in tap}) for tap in places if len(tap) > 1]
    height = top + _BOX + 8 + _LANE * len(lanes)
    parts = [_box(layer, top, layer in read) for layer in range(depth + 1)]
    for number, lane in enumerate(lanes):
        y = top + _BOX + 6 + _LANE * number
        ends = _center(lane[0]), _center(lane[-1])
        dots = "".join(f'<circle cx="{_center(one)}" cy="{y}" r="2.2"/>' for one in lane)
        parts.append(f'<path class="lane" d="M{ends[0]} {y}H{ends[1]}"/>{dots}')
    if inside:
        parts.append(f'<path class="memory" d="M{_center(0)} 6H{_center(depth)}"/>')
        parts += [f'<path class="memory" d="M{_center(n)} 6V{top}"/>' for n in range(1, depth + 1)]
    svg = (
        f'<svg class="taps" role="img" aria-label="{escape(words)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
    )
    return Markup(svg) + Markup("<span>{}</span>").format(words)  # noqa: S704 (numbers and escaped)


def _place(layer: int, depth: int) -> tuple[int, bool]:
    """The hidden state of a tap, and whether the final norm follows it."""
    return (2 * depth + 1 - layer, True) if layer > depth else (layer, False)


def _center(layer: int) -> int:
    return layer * (_BOX + _GAP) + _BOX // 2 + 1


def _box(layer: int, top: int, read: bool) -> str:
    x, kind = layer * (_BOX + _GAP) + 1, "read" if read else "unread"
    return (
        f'<rect class="{kind}" x="{x}" y="{top}" width="{_BOX}" height="{_BOX}" rx="3"/>'
        f'<text class="{kind}" x="{_center(layer)}" y="{top + 15}">{layer}</text>'
    )


def _reading(
    places: Sequence[Sequence[tuple[int, bool]]],
    taps: Sequence[Sequence[int]],
    *,
    inside: bool,
) -> str:
    """The diagram in words."""
    if inside:
        return (
            "Runs inside the encoder: it starts from hs[0], and what it writes after a block is "
            "what the next block sees."
        )
    alone = [tap[0] for tap in places if len(tap) == 1]
    single = [f"hs[{place}]{' after the final norm' * normed}" for place, normed in alone]
    means = [
        f"the mean of hs[{', '.join(str(place) for place, _ in tap)}]"
        for tap in places
        if len(tap) > 1
    ]
    repeated = ", repeated" if len(taps) > len(places) else ""
    return f"Reads {', '.join([*single, *means])}{repeated}."


def _traces(records: Sequence[CellRecord]) -> Iterator[tuple[str, Markup]]:
    """Each instrument as bars, the mean over all finished runs of the most frequent length."""
    done = [record for record in records if record.status == "done" and record.trace]
    for key in sorted({key for record in done for key in record.trace}):
        rows = [record.trace[key] for record in done if key in record.trace]
        lengths = [len(row) for row in rows]
        length = max(set(lengths), key=lambda one: (lengths.count(one), one))
        values = np.mean([row for row in rows if len(row) == length], axis=0)
        if length and np.isfinite(values).all():
            yield key.replace("_", " "), _bars(values)


def _bars(values: np.ndarray) -> Markup:
    """One bar for each layer, from 0; lowest and highest value in words."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    span = (high - low) or 1.0
    parts = []
    for place, value in enumerate(map(float, values)):
        ends = sorted((30 * (high - value) / span, 30 * (high - 0.0) / span))
        parts.append(
            f'<rect x="{place * 9 + 1}" y="{ends[0] + 1:.1f}" width="7" '
            f'height="{max(ends[1] - ends[0], 0.8):.1f}"/>'
        )
    words = f"{values.min():.3g} to {values.max():.3g}"
    width = len(values) * 9 + 1
    svg = (
        f'<svg class="bars" role="img" aria-label="{words}" width="{width}" height="32" '
        f'viewBox="0 0 {width} 32">{"".join(parts)}</svg> {words}'
    )
    return Markup(svg)  # noqa: S704 (numbers only)


def task_cards(report: Material, pictures: Sequence[ExamplePictures]) -> list[Card]:
    """A card for each task with records; pictures where the folder has them."""
    found: dict[str, Card] = {}
    for table in _tables(report):
        ceilings = references(table)
        for column, facts in enumerate(table.tasks):
            if facts.name not in found:
                taken = (card.id for card in found.values())
                key = anchor("task", facts.name, taken)
                found[facts.name] = _task(table, column, ceilings.get(column), pictures, key)
    return list(found.values())


def _task(
    table: ScoreTable,
    column: int,
    ceiling: Reference | None,
    pictures: Sequence[ExamplePictures],
    key: str,
) -> Card:
    facts, records = table.tasks[column], _runs_on(table, column)
    outside = "" if facts.in_suite else "not in the suite"
    card = _known_task(records)
    text = _docstring(card.file) if card else ""
    number, drawn = picture_of(pictures, records)
    return Card(
        id=key,
        name=facts.name,
        marks="; ".join(filter(None, (facts.group, facts.mark, outside))),
        about=card.about if card else "Not part of this package: its file is not read here.",
        text=text,
        facts={
            **_sizes(table, column),
            **_reached(table, column, ceiling),
            **_source(card, text, records, drawn),
        },
        pictures=list(_examples(number, drawn)) if drawn else (),
    )


def _runs_on(table: ScoreTable, column: int) -> list[CellRecord]:
    return [run for row in range(len(table.methods)) for run in table.runs(row, column)]


def _known_task(records: Sequence[CellRecord]) -> TaskCard | None:
    origin = str(records[0].provenance.get("task", BUILT_IN))
    card = _built_in().tasks.get(records[0].spec.task)
    return card if card and card.source == BUILT_IN and origin in ("", BUILT_IN) else None


def picture_of(
    pictures: Sequence[ExamplePictures], records: Sequence[CellRecord]
) -> tuple[int, ExamplePictures | None]:
    """Number and pictures of the task of these records; None where the folder has none."""
    keys = {(record.spec.task, record.spec.data, record.items) for record in records}
    for number, one in enumerate(pictures):
        if (one.task, one.data, one.items) in keys:
            return number, one
    return 0, None


def _sizes(table: ScoreTable, column: int) -> dict[str, str]:
    facts, budget = table.tasks[column], table.condition.budget
    drawn = f" (each run draws {budget.draw:,})" if budget.draw else ""
    sizes = [f"{budget.train_items:,} training{drawn}"] if budget.train_items else []
    sizes += [f"{budget.val_items:,} validation"] if budget.val_items else []
    return {
        "examples": ", ".join([*sizes, f"{facts.examples:,} test"]),
        "metric": facts.metric,
        "chance": f"{100 * facts.chance:.1f} %",
    }


def _reached(table: ScoreTable, column: int, ceiling: Reference | None) -> dict[str, str]:
    """The best single layer by the closed-form reader, and the highest mean of a method."""
    means = [(cell(table, row, column), name) for row, name in enumerate(table.methods)]
    done = [(one.mean, name) for one, name in means if one.runs]
    facts = {}
    if ceiling:
        best = 100 * ceiling.layers[ceiling.best]
        facts["best single layer, closed-form reader"] = f"{best:.1f} % (hs[{ceiling.best}])"
    if done:
        mean, name = max(done)
        facts["highest mean of a method"] = f"{100 * mean:.1f} % ({name})"
    return facts


def _source(
    card: TaskCard | None,
    text: str,
    records: Sequence[CellRecord],
    drawn: ExamplePictures | None,
) -> dict[str, str]:
    facts = {}
    if drawn:
        count = len(drawn.answers)
        named = f": {', '.join(drawn.answers)}" if count <= _MOST_ANSWERS else ""
        facts["answers"] = f"{count}{named}"
    if card:
        licence = _LICENCE.search(text)
        rendered = "" if card.needs or licence else "Apache-2.0: rendered by this package"
        facts["licence"] = licence[1] if licence else rendered or "see the text below"
        facts["data"] = card.get or "in the package"
    facts["data hash"] = records[0].spec.data[:12]
    if not drawn:
        facts["pictures"] = "none in the folder of results"
    return facts


def _examples(number: int, drawn: ExamplePictures) -> Iterator[tuple[Markup, str, str]]:
    """The first examples with a picture, every answer before an answer comes twice."""
    shown = range(len(drawn.tiles))
    seen: dict[int, int] = {}
    turns = []
    for example in shown:
        turns.append((seen.setdefault(drawn.right[example], 0), example))
        seen[drawn.right[example]] += 1
    for _, example in sorted(turns)[:_SHOWN]:
        yield tile(number, drawn, example), drawn.question(example), drawn.answer(example)


def tile(number: int, drawn: ExamplePictures, example: int) -> Markup:
    """The picture of an example: a window on the sheet of its task."""
    place, words = drawn.tiles[example], f"test example {example + 1} of {drawn.task}"
    x, y = place % drawn.columns * drawn.width, place // drawn.columns * drawn.height
    scale = max(1, 64 // max(drawn.width, drawn.height))
    style = (
        f"width:{drawn.width * scale}px;height:{drawn.height * scale}px;"
        f"background-position:-{x * scale}px -{y * scale}px;"
        f"background-size:{drawn.size[0] * scale}px {drawn.size[1] * scale}px"
    )
    element = '<span class="tile sheet-{}" role="img" aria-label="{}" style="{}"></span>'
    return Markup(element).format(number, words, style)
