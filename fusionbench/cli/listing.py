"""`fusionbench list` and `show`: methods, tasks, benchmarks and encoders, as text or as JSON."""

import fnmatch
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fusionbench.api.errors import UserError, unknown
from fusionbench.api.sources import find_source, ways
from fusionbench.cli.app import Plugins, Strict, app, read, say
from fusionbench.registry.cards import count
from fusionbench.registry.catalog import BenchmarkCard, Catalog, MethodCard, TaskCard
from fusionbench.registry.selection import shown

if TYPE_CHECKING:
    from fusionbench.models.encoders.card import EncoderCard

TextRow = tuple[str, ...]
UNKNOWN = "—"
"""Shown for a fact that a method does not declare."""


class Listed(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    ENCODERS = "encoders"
    PAPERS = "papers"


@app.command("list")
def command(
    kind: Annotated[Listed, typer.Argument()],
    names: Annotated[list[str], typer.Argument(help="Names or globs; none: all.")] = [],  # noqa: B006
    long: Annotated[
        bool, typer.Option("--long", help="Methods: paper, parity, parameters; tasks: files.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_root: Annotated[
        str, typer.Option("--data-root", help="Tasks: look for benchmark files below this folder.")
    ] = "",
    plugin: Plugins = [],  # noqa: B006
    strict_plugins: Strict = False,
) -> None:
    """List methods, tasks (with benchmarks), encoders or papers, and how to get what is missing."""
    if kind is Listed.PAPERS:
        sys.stdout.write(papers_text(as_json=as_json) + "\n")
        return
    catalog = read(plugin, strict=strict_plugins, imports=False)
    catalog = picked(catalog, kind.value, names)
    if as_json:
        text = json_text(kind.value, catalog, data_root)
    elif kind is Listed.METHODS:
        cards = list(catalog.methods.values())
        text = methods_long(catalog) if long else methods_text(cards)
    else:
        text = encoders_text(catalog)
        if kind is Listed.TASKS:
            text = tasks_text(catalog, data_root, long=long or bool(names))
    sys.stdout.write(text + "\n")


def papers_text(*, as_json: bool) -> str:
    """Two lines a paper: its title, and its tables with the methods of ours that they need."""
    from fusionbench.report.paper import papers

    if as_json:
        rows = [
            {
                "name": one.name,
                "title": one.title,
                "paper": one.paper,
                "methods": one.methods("probe"),
            }
            for one in papers().values()
        ]
        return json.dumps(rows, indent=1)
    lines = []
    for one in papers().values():
        tables = ", ".join(table.name for table in one.tables)
        lines += [one.name, *_indented(one.title, 2)]
        lines += _indented(f"tables: {tables}; {len(one.methods('probe'))} methods", 2)
    return "\n".join([*lines, "", "`fusionbench paper NAME --run` runs and prints its tables."])


WIDTH = 80
"""Columns of a terminal."""
_NAME = 27
_LEGEND = """\
A name in front and -variant below it are written together: mema-no_memory.
+ runs in the encoder, x is not in `all`; `fusionbench show NAME` prints the card."""


def methods_text(cards: Sequence[MethodCard]) -> str:
    """A line per method, by family: name, year, what it is; of a variant what it changes."""
    lines, family = [], ""
    for card in sorted(cards, key=lambda card: (card.family, card.variant)):
        if card.family != family and card.variant:
            lines.append(_line(card.family, _year(card), "", card.idea))
        family = card.family
        marks = "+" * card.in_encoder + "x" * (not card.in_all)
        if card.variant:
            changed = ", ".join(f"{key}={shown(value)}" for key, value in card.changes.items())
            lines.append(_line(f"  -{card.variant}", "", marks, changed))
        else:
            lines.append(_line(card.name, _year(card), marks, card.idea))
        if card.source != "built-in":
            lines[-1] += f" (from {card.source})"
    return "\n".join([*lines, "", _LEGEND])


def _year(card: MethodCard) -> str:
    return str(card.facts.get("year", ""))


def _line(name: str, year: str, marks: str, text: str) -> str:
    """One line of at most 80 columns; the text is cut at a word, the name is not."""
    start = f"{name:<{_NAME}} {year:<4} {marks:<2} "
    room = max(WIDTH - len(start), 12)
    return f"{start}{textwrap.shorten(text, room, placeholder='...')}".rstrip()


def picked(catalog: Catalog, kind: str, names: Sequence[str]) -> Catalog:
    """The catalog with the methods or tasks that fit a name or glob; UserError if none fits."""
    if not names or kind == "encoders":
        return catalog
    cards = {**catalog.tasks, **catalog.benchmarks} if kind == "tasks" else catalog.methods
    kept = {name for pattern in names for name in fnmatch.filter(cards, pattern)}
    if not kept:
        raise unknown(kind.removesuffix("s"), names[0], cards, globs=True)
    return replace(
        catalog,
        methods={name: card for name, card in catalog.methods.items() if name in kept},
        tasks={name: card for name, card in catalog.tasks.items() if name in kept},
        benchmarks={name: card for name, card in catalog.benchmarks.items() if name in kept},
    )


@app.command("show")
def show(
    names: Annotated[list[str], typer.Argument(help="Methods, tasks or encoders; globs.")],
    plugin: Plugins = [],  # noqa: B006
) -> None:
    """Print the card of each method, task or encoder with this name."""
    catalog = read(plugin, imports=False)
    found = [card for name in names for card in cards_of(catalog, name)]
    sys.stdout.write("\n\n".join(dict.fromkeys(found)) + "\n")


def cards_of(catalog: Catalog, name: str) -> list[str]:
    """The cards that fit a name or a glob, as text; UserError if none does."""
    methods = fnmatch.filter(catalog.methods, name)
    tasks = fnmatch.filter(catalog.tasks, name)
    benchmarks = fnmatch.filter(catalog.benchmarks, name)
    here = _encoders(catalog)
    encoders = [card for card in here if fnmatch.fnmatch(card.name, name)]
    found = [_card(catalog.methods[one]) for one in methods]
    found += [_task_card(catalog.tasks[one]) for one in tasks]
    found += [_benchmark(catalog.benchmarks[one], "") for one in benchmarks]
    found += [_encoder_card(card) for card in encoders]
    if not found:
        known = [*catalog.methods, *catalog.tasks, *catalog.benchmarks, *(c.name for c in here)]
        where = "`fusionbench list methods`, `list tasks` and `list encoders` show all"
        raise unknown("method, task or encoder", name, known, where, globs=True)
    return found


def _card(card: MethodCard) -> str:
    """Every fact of a method."""
    settings = ", ".join(f"{key}={shown(value)}" for key, value in card.settings.items())
    rows = {
        **facts_of(card),
        "settings": settings or "none",
        "control": card.control or UNKNOWN,
        "runs": "in the encoder" if card.in_encoder else "on features",
        "in all": "yes" if card.in_all else "no",
        "version": str(card.version),
        "from": card.source,
    }
    return _facts(card.name, card.about, rows)


def _task_card(card: TaskCard) -> str:
    rows = {
        "skill": card.group,
        "in suite": "yes" if card.in_suite else "no",
        "encoder": card.encoder or "the study's",
        "data": _how(card),
        "version": str(card.version),
        "from": card.source,
    }
    return _facts(card.name, card.about, rows)


def _encoder_card(card: "EncoderCard") -> str:
    rows = {
        "blocks": str(card.layers or UNKNOWN),
        "width": str(card.dim or UNKNOWN),
        "input": f"{card.size} px" if card.size else UNKNOWN,
        "weights": card.weights or UNKNOWN,
        "available": "yes" if card.available else f"no: {card.get}",
        "from": card.origin,
    }
    return _facts(card.name, card.source, rows)


def _facts(name: str, about: str, rows: Mapping[str, str]) -> str:
    """Name and idea, then a fact a line, wrapped."""
    lines = textwrap.wrap(f"{name}: {about}", WIDTH)
    for key, value in rows.items():
        start = f"  {key:<11} "
        lines += textwrap.wrap(value, WIDTH, initial_indent=start, subsequent_indent=" " * 14)
    return "\n".join(lines)


def methods_long(catalog: Catalog) -> str:
    """A paragraph per method: paper, parity, parameters, needs, start."""
    sizes = "at CLIP-L/14-336 with an LLM of width 4096, in addition to LLaVA's projector"
    names = (
        "D width, L blocks, N patches, Q width of the question, H and M width and MLP of the LLM;\n"
        "the formulas are for 24 blocks and a CLS token: other encoders may differ a little"
    )
    head = f"parameters: {sizes}\n{names}"
    return "\n\n".join([head, *(_paragraph(card) for card in catalog.methods.values())])


_GROUP = {TaskCard: 9, BenchmarkCard: 13}
_TASKS_LEGEND = """\
x enters no mean of the suite, - its data is not on this machine; `fusionbench
show NAME` prints the card."""


def tasks_text(catalog: Catalog, data_root: str = "", *, long: bool = False) -> str:
    """A line per task and benchmark: name, skill, what is asked; then how to get missing data.

    `long`, or a data root, shows the files that each benchmark needs.
    """
    rows = [_short(card, _task_marks(card)) for card in catalog.tasks.values()]
    rows += [
        line
        for card in catalog.tasks.values()
        if not card.available
        for line in _indented(f"{card.name}: {_how(card).removeprefix('no: ')}", 2)
    ]
    parts = [rows, [_TASKS_LEGEND]] if rows else []
    if cards := catalog.benchmarks.values():
        where = "`list tasks NAME` shows their files"
        if long or data_root:
            where = f"looked for below {data_root or 'DIR (--data-root)'}"
        found = [f"benchmarks of the track vlm, evaluated only; {where}"]
        for card in cards:
            wanted = long or data_root
            found += [_benchmark(card, data_root)] if wanted else [_short(card, "")]
        parts.append(found)
    return "\n\n".join("\n".join(part) for part in parts)


def _task_marks(card: TaskCard) -> str:
    return "x" * (not card.in_suite) + "-" * (not card.available)


def _short(card: TaskCard | BenchmarkCard, marks: str) -> str:
    """One line of at most 80 columns, longer only for where a plug-in comes from."""
    start = f"{card.name:<19} {card.group:<{_GROUP[type(card)]}} {marks:<2} "
    about = card.about.removesuffix(" A constant question.")
    about = textwrap.shorten(about, max(WIDTH - len(start), 12), placeholder="...")
    origin = f" (from {card.source})" if card.source != "built-in" else ""
    return f"{start}{about}{origin}".rstrip()


def _indented(text: str, by: int) -> list[str]:
    """The text wrapped to 80 columns, later lines further in; paths and addresses stay whole."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=" " * by, subsequent_indent=" " * (by + 2),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _benchmark(card: BenchmarkCard, data_root: str) -> str:
    """Name, version, group and source; whether the data is there; each form of it."""
    title = f"{card.name}  version {card.version}  {card.group}  from {card.source}"
    form = form_found(card, data_root)
    state = {"": "not found", None: "needs one of"}.get(form, f"found: {form}")
    forms = [] if form else ways(card.needs, data_root or "DIR")
    return "\n".join([title, f"  {state}", *(line for way in forms for line in _indented(way, 4))])


def form_found(card: BenchmarkCard, data_root: str) -> str | None:
    """`files`, `tsv` or `hub` below the data root; empty if absent, None without a data root."""
    if not data_root:
        return None
    try:
        return find_source(card.name, card.needs, data_root).form
    except UserError:
        return ""


def encoders_text(catalog: Catalog) -> str:
    """A line per encoder: shape, input; below it how to get missing weights."""
    lines = [f"{'encoder':<24} {'blocks x width':<15} {'input':<7} available"]
    for card in _encoders(catalog):
        stack = f"{card.layers} x {card.dim}" if card.layers else "-"
        size = f"{card.size} px" if card.size else "-"
        origin = f" (from {card.origin})" if card.origin != "built-in" else ""
        here = "yes" if card.available else "no"
        lines.append(f"{card.name:<24} {stack:<15} {size:<7} {here}{origin}")
        lines += [] if card.available else _indented(card.get, 2)
    lines.append(f"{'hf:<id or folder>':<24} CLIP, SigLIP, DINOv2, DINOv3, RADIO, ViT")
    lines.append(f"{'timm:<name or folder>':<24} ViT, DINOv3, EVA-02, Perception Encoder")
    return "\n".join(lines)


def _encoders(catalog: Catalog) -> "list[EncoderCard]":
    from fusionbench.models.encoders.catalog import available
    from fusionbench.registry.catalog import plugged

    cards, problems = available()
    say(problems)
    return [*cards, *plugged(catalog)]


def json_text(kind: str, catalog: Catalog, data_root: str = "") -> str:
    """The cards of `kind` as a JSON list; benchmarks follow the tasks."""
    if kind == "encoders":
        return json.dumps([asdict(card) for card in _encoders(catalog)], indent=1)
    cards: Mapping[str, MethodCard | TaskCard]
    cards = catalog.methods if kind == "methods" else catalog.tasks
    rows = [dict(_fields(card)) for card in cards.values()]
    if kind == "tasks":
        rows += [_plain(card, data_root) for card in catalog.benchmarks.values()]
    return json.dumps(rows, indent=1)


def _plain(card: BenchmarkCard, data_root: str) -> dict[str, object]:
    """A benchmark's card; `found` is the form below the data root."""
    fields = {key: value for key, value in asdict(card).items() if key != "file"}
    return fields | {"benchmark": True, "found": form_found(card, data_root)}


def columns(rows: Sequence[TextRow]) -> str:
    """Rows as left-aligned text with two spaces between columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
             for row in rows)  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def _paragraph(card: MethodCard) -> str:
    facts = facts_of(card)
    origin = f"  from {card.source}" if card.source != "built-in" else ""
    return "\n".join([f"{card.name}{origin}", *(f"  {key:<11} {facts[key]}" for key in facts)])


def facts_of(card: MethodCard) -> dict[str, str]:
    """Facts of a method as text, `UNKNOWN` where it does not declare one.

    `title` is there only where the title of its paper is known.
    """
    facts = card.facts
    paper = ", ".join(str(facts[key]) for key in ("paper", "year") if facts.get(key))
    wants = str(facts["needs"]) or "hidden states only"
    identity = "as the penultimate layer" if facts["identity"] else "differently"
    return {
        "paper": paper or UNKNOWN,
        **({"title": card.title} if card.title else {}),
        "parity": str(facts.get("parity") or UNKNOWN),
        "parameters": _parameters(card),
        "needs": wants,
        "starts": identity,
    }


def _parameters(card: MethodCard) -> str:
    formula = str(card.facts.get("parameters", ""))
    if not formula:
        return UNKNOWN
    try:
        number = f"{parameter_count(card):,}"
    except ValueError as error:
        return f"{UNKNOWN} ({error})"
    text = number if formula == number else f"{formula} = {number}"
    published = card.facts.get("published")
    return f"{text} (the official code: {published:,})" if isinstance(published, int) else text


def parameter_count(card: MethodCard) -> int:
    """The value of the method's formula; ValueError if it has none or it cannot be read."""
    width = card.facts.get("query_width", 0)
    return count(str(card.facts.get("parameters", "")), card.settings, query_width=int(width))


def _how(card: TaskCard) -> str:
    if card.available:
        return "yes"
    return f"no: {card.get}" if card.get else f"no: needs {', '.join(card.missing)}"


def _fields(card: MethodCard | TaskCard) -> Iterator[tuple[str, object]]:
    # `file` is a path of this machine.
    yield from ((key, value) for key, value in asdict(card).items() if key != "file")
    if isinstance(card, TaskCard):
        yield "available", card.available
    elif card.facts.get("parameters"):
        # The formula of a plug-in may be invalid.
        with suppress(ValueError):
            yield "parameters_at_clip_l", parameter_count(card)
