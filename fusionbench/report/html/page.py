"""`report.html` from the tables and figures of a report: one file that fetches nothing."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusionbench import __version__
from fusionbench.api.errors import Problem
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import write_atomic
from fusionbench.records.history import Request
from fusionbench.records.pictures import read_pictures
from fusionbench.records.text import checkpoint_name, file_only, impersonal, visible
from fusionbench.report import coverage
from fusionbench.report.contrast_table import INTERVALS
from fusionbench.report.cost_table import over_encoder
from fusionbench.report.coverage import dead_tasks
from fusionbench.report.figures.style import DARK, Drawn
from fusionbench.report.html.cards import Card, at_chance, method_cards, task_cards
from fusionbench.report.html.examples import browser
from fusionbench.report.html.grid import Grid, costs, differences, pivots, plain, standings
from fusionbench.report.page import Material
from fusionbench.report.tables import Row, is_missing


def method_rows(records: Sequence[CellRecord]) -> list[Row]:
    """Each method with its version and settings, once for each combination that ran."""
    found = {
        (label, record.spec.method_version, settings): {
            "method": label,
            "version": record.spec.method_version,
            "where": "in the encoder" if record.in_encoder else "on cached features",
            "settings": settings,
            "from": file_only(str(record.provenance.get("method", ""))),
        }
        for record in sorted(records, key=attrgetter("in_encoder"))
        for label, settings in [(record.label or record.spec.method, _settings(record))]
    }
    return [row for _, row in sorted(found.items())]


def _settings(record: CellRecord) -> str:
    settings = sorted(record.spec.settings.items())
    return ", ".join(f"{name}={value}" for name, value in settings) or "none"


def task_rows(records: Sequence[CellRecord]) -> list[Row]:
    """Each task with its version, data and size."""
    found = {
        (record.spec.task, record.spec.task_version, record.spec.data): {
            "task": record.spec.task,
            "version": record.spec.task_version,
            "group": record.group,
            "in the suite": "yes" if record.in_suite else "no",
            "metric": record.metric,
            "chance": record.chance,
            "test examples": record.examples,
            "data": record.spec.data[:12],
        }
        for record in sorted(records, key=lambda record: record.status == "done")
    }
    return [row for _, row in sorted(found.items())]


def environment_rows(records: Iterable[CellRecord]) -> list[Row]:
    """Encoder, code, software and hardware of the records, with the number of cells of each."""
    found: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        spec = record.spec
        found["encoder", checkpoint_name(spec.encoder), f"weights {spec.weights[:12]}"] += 1
        if record.status == "done":
            found.update(_origins(record.provenance))
    return [
        {"part": part, "name": name, "value": value, "cells": count}
        for (part, name, value), count in sorted(found.items())
    ]


def _origins(provenance: Mapping[str, object]) -> Iterable[tuple[str, str, str]]:
    for part in ("code", "software", "hardware"):
        facts = provenance.get(part)
        for name, value in sorted(facts.items()) if isinstance(facts, Mapping) else ():
            if value not in ("", None):
                yield part, str(name), str(value)


def study_yaml(planned: Request | None) -> str:
    """The last study as YAML for `fusionbench run`; empty without one."""
    if planned is None:
        return ""
    import yaml

    # With empty keys: a missing one would be filled from the quick preset.
    return impersonal(yaml.safe_dump(dict(planned.study), sort_keys=True, allow_unicode=True))


def commands(records: Sequence[CellRecord], planned: Request | None) -> str:
    """Shell commands that install this version, run the study and write the report."""
    commits = sorted({str(r.provenance.get("code", {}).get("commit", "")) for r in records} - {""})
    versions = sorted({str(r.provenance.get("code", {}).get("fusionbench", "")) for r in records})
    version = planned.version if planned and planned.version else (versions or [""])[-1]
    lines = ["# in a checkout of FusionBench"]
    lines += [f"git checkout {commits[-1]}"] if commits else [f"git checkout v{version}"]
    lines += [
        "pip install -e '.[data]'",
        "fusionbench run study.yaml --out results/again    # the file below",
        "fusionbench report results/again",
    ]
    return "\n".join(lines)


_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(xlink:href|href)="#([^"]+)"|url\(#([^)]+)\)')
_COORDINATES = re.compile(r'\b(d|x|y)="([^"]*)"')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_COLOR = re.compile("|".join(map(re.escape, DARK)), re.IGNORECASE)


def inline(svg: str, name: str, title: str) -> str:
    """The `<svg>` element with unique ids; `title` is its label for screen readers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = _ID.sub(lambda found: f'id="{name}-{found[1]}"', body)
    body = _REFERENCE.sub(lambda found: _referring(found, name), body)
    body = _COORDINATES.sub(lambda found: f'{found[1]}="{_rounded(found[2])}"', body)
    body = _COLOR.sub(lambda found: f"var({variable(found[0])})", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def variable(color: str) -> str:
    """The CSS variable of a colour."""
    return f"--f{color.lower().removeprefix('#')}"


def theme(dark: bool) -> Mapping[str, str]:
    """CSS variable -> colour of the figures on a light or a dark page."""
    return {variable(light): other if dark else light for light, other in DARK.items()}


def _referring(found: re.Match[str], name: str) -> str:
    return f'href="#{name}-{found[2]}"' if found[1] else f"url(#{name}-{found[3]})"


def _rounded(text: str) -> str:
    """Coordinates with two decimals, which makes the file a third smaller."""
    return _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.2f}", text)


_PIVOTS: Mapping[str, tuple[str, str]] = {
    "main": ("Scores by task", "task"),
    "planted": ("Scores on planted tasks", "task"),
}
"""Tables with methods as rows; all others are shown as they are."""
_CONDITION = ("track", "encoder", "steps", "training", "condition")
"""Shown only where they differ between the rows."""
_COLUMNS: Mapping[str, Sequence[str]] = {
    "reported": (
        "method", "ours", "benchmark", "metric", "value", "base_model", "regime", "evidence",
        "source", "comparable", *_CONDITION,
    ),
}  # fmt: skip
_MOST_ROWS = 1000
"""Longer tables are left to their CSV files."""
_LARGEST_FIGURE = 700_000
"""Characters; a larger figure is linked, not shown."""
_NOTES: Mapping[str, str] = {
    "summary": "Sorted by the mean over the suite: the tasks that count, each from chance (0) to "
    "all right (100), ± half of the 95 % interval. Difference: method minus baseline, in points, "
    "with its 95 % interval as a bar; the line is no difference. Added: trained parameters beyond "
    "the baseline's whole model.",
    "main": "Mean ± half of the 95 % interval, in percent; the highest mean of a column is bold, "
    "which does not say that it is the best method; shaded: the set that holds the best method "
    "with 95 % probability. Hover, tap or use the arrow keys in a cell for n, p and MDE.",
    "planted": "Synthetic encoders with a known right answer: they test the suite itself and "
    "enter no mean. On planted_random every method is at chance, whatever its mean.",
    "contrasts": "Planned comparisons first, then every method against the baseline on the suite "
    "(exploratory). Points; over several tasks a point is a hundredth of the way from chance to "
    "all right. A verdict needs both references beaten and a corrected p. MDE: the smallest true "
    "difference that such a study finds in 4 of 5 cases.",
    "cost": "Parameters: what is added to the baseline's whole model (fusion, projector and "
    "reader). Time and FLOPs: beyond the bare encoder with the projector of one layer.",
    "references": "Scores of single hidden states with the closed-form reader.",
    "models": "Scores and measures as their papers report them; intervals of differences are for "
    "new images and take the trained runs as given.",
    "reported": "From papers, in their regime; never ranked together with the records.",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: tables, figures, cards and files to download."""

    id: str
    title: str
    note: str = ""
    grids: Sequence[Grid] = ()
    figures: Sequence[Mapping[str, str]] = ()
    cards: Sequence[Card] = ()
    downloads: Sequence[tuple[str, str]] = ()
    """Text and address, relative to the page."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a section is made of, by name."""

    id: str
    title: str
    tables: Sequence[str] = ()
    figures: Sequence[str] = ()
    cards: str = ""
    note: str = ""


_SECTIONS: Sequence[_Place] = (
    _Place(id="leaderboard", title="Leaderboard", tables=("summary",)),
    _Place(
        id="planted", title="Planted tasks: is the suite right where the answer is known?",
        tables=("planted",), figures=("planted",),
    ),
    _Place(
        id="differences", title="Differences", tables=("contrasts",),
        figures=("differences", "differences-tasks", "ranks", "profile"), note=INTERVALS,
    ),
    _Place(
        id="tasks", title="Tasks", tables=("main", "references"), figures=("heatmap", "scores"),
        cards="tasks",
    ),
    _Place(id="examples", title="Examples on which two methods differ"),
    _Place(id="models", title="Inside a language model", tables=("models",)),
    _Place(id="cost", title="Cost", tables=("cost",), figures=("cost",)),
    _Place(
        id="layers", title="Layers", tables=("layers",), figures=("layers", "instruments"),
    ),
    _Place(id="ablation", title="Ablations", tables=("ablation",)),
    _Place(
        id="methods", title="Methods", cards="methods",
        note="One card for each method, the highest mean first.",
    ),
    _Place(id="imported", title="Scored by other tools", tables=("imported",)),
    _Place(id="reported", title="Published numbers", tables=("reported",)),
)  # fmt: skip
"""In the order of the page, after the answer and before what ran; empty ones are left out."""
_TITLES: Mapping[str, str] = {
    "contrasts": "Differences and verdicts",
    "ablation": "Effects of the parts",
    "cost": "What each method adds",
    "references": "What single layers hold",
    "models": "Scores and measures",
    "imported": "Imported scores",
    "reported": "From papers",
    "layers": "Weights of the layers",
}


def write_html(
    page: Path, report: Material, tables: Mapping[str, Sequence[Row]], figures: Sequence[Drawn]
) -> None:
    """Write the page from the rows of all tables, by name, and the figures on disk.

    Files of tables and figures that lie beside the page are linked.
    """
    records, planned = report.results.records, report.planned
    problems: list[Problem] = []
    pictures = list(read_pictures(report.results.store.folder, problems))
    cards = {"methods": method_cards(report), "tasks": task_cards(report, pictures)}
    ignored = [str(one).replace(f"{report.results.store.folder}/", "") for one in problems]
    context = {
        "name": str(planned.study.get("name", "")) if planned else "",
        "note": str(planned.study.get("note", "")) if planned else "",
        "version": __version__,
        "counts": _counts(records),
        "answers": _answers(tables.get("answer", ())),
        "answer_files": _tables_at(page.parent, ["answer"]),
        "sections": list(sections(page.parent, report, tables, figures, cards)),
        "anchors": _anchors(report, cards["methods"]),
        "browser": Markup(browser(report, pictures)),  # noqa: S704  (JSON without "<")
        "sheets": [one.sheet for one in pictures],
        "facts": _facts(records),
        "coverage": plain("cells", "What ran", coverage.status_rows(report.results)),
        "coverage_files": _tables_at(page.parent, ["coverage"]),
        "training": _shown_figures(page.parent, figures, ("learning",)),
        "remarks": _remarks(report, ignored),
        "commands": commands(records, planned),
        "study": study_yaml(planned),
        "light": theme(dark=False),
        "dark": theme(dark=True),
    }
    write_atomic(page, visible(render(context)).encode())


def sections(
    home: Path,
    report: Material,
    tables: Mapping[str, Sequence[Row]],
    figures: Sequence[Drawn],
    cards: Mapping[str, Sequence[Card]],
) -> Iterator[Section]:
    """The sections of the page in order; those without contents are left out."""
    left = {name for name, rows in tables.items() if rows} - {"answer", "coverage"}
    for place in _SECTIONS:
        found = Section(
            id=place.id,
            title=place.title,
            note=place.note,
            grids=[one for name in place.tables for one in _grids(name, report, tables)],
            figures=_shown_figures(home, figures, place.figures),
            cards=cards.get(place.cards, ()),
            downloads=_tables_at(home, [name for name in place.tables if name in left]),
        )
        if found.grids or found.figures or found.cards or found.downloads:
            yield found
        elif place.id == "examples" and report.analyses:
            yield found


def _grids(name: str, report: Material, tables: Mapping[str, Sequence[Row]]) -> Iterator[Grid]:
    """The tables of one name, condition by condition."""
    rows, note = tables.get(name, ()), _NOTES.get(name, "")
    baselines = {analysis.plan.baseline for analysis in report.analyses}
    baseline = next(iter(baselines)) if len(baselines) == 1 else ""
    title = _TITLES.get(name, name.replace("_", " ").capitalize())
    if not rows:
        return
    if name == "summary":
        marks, times = _warnings(report), _times(report)
        yield from standings(
            name, "Leaderboard", rows, note, marks=marks, times=times, baseline=baseline
        )
    elif name in _PIVOTS:
        heading, across = _PIVOTS[name]
        yield from pivots(name, heading, _by_mean(rows, tables), across, note)
    elif name == "contrasts":
        yield differences(name, title, rows, note)
    elif name == "cost":
        yield from costs(name, title, _by_mean(rows, tables), note, baseline=baseline)
    elif len(rows) <= _MOST_ROWS:
        yield plain(name, title, _shown(name, rows), note)


def _by_mean(rows: Sequence[Row], tables: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Rows in the order of the leaderboard."""
    order = {
        str(row["method"]).split(" (= ")[0]: place
        for place, row in reversed(list(enumerate(tables.get("summary", ()))))
    }
    return sorted(rows, key=lambda row: order.get(str(row["method"]), len(order) * 10))


def _warnings(report: Material) -> dict[str, str]:
    """Display name of each method that is dead on a task or at chance -> what is wrong with it."""
    found: dict[str, str] = {}
    for analysis in report.analyses:
        dead = dead_tasks(report.results, analysis.table)
        for row, label in enumerate(analysis.labels):
            said = ["not above chance"] if at_chance(analysis, row) else []
            said += [f"dead on {', '.join(dead[row])}"] if row in dead else []
            if said:
                found[label] = "; ".join(said)
    return found


def _times(report: Material) -> dict[str, str]:
    """Display name of each method -> inference time over the encoder, in percent of its own."""
    found: dict[str, str] = {}
    for analysis in report.analyses:
        table = analysis.table
        for row, label in enumerate(analysis.labels):
            time = over_encoder(report.profiles, table, row)
            if time is not None:
                found.setdefault(label, f"{time.share:+.0f} %")
    return found


def _anchors(report: Material, cards: Sequence[Card]) -> dict[str, str]:
    """Name of each method, as tables show it -> the id of its card."""
    found = {card.name: card.id for card in cards}
    for analysis in report.analyses:
        names = zip(analysis.labels, analysis.table.methods, strict=True)
        found |= {label: found[name] for label, name in names if name in found}
    return found


def _tables_at(home: Path, names: Iterable[str]) -> list[tuple[str, str]]:
    """Text and address of the CSV files of these tables, if they lie beside the page."""
    files = [f"tables/{name}.csv" for name in names]
    return [(file.removeprefix("tables/"), file) for file in files if (home / file).exists()]


def _shown_figures(
    home: Path, figures: Sequence[Drawn], names: Sequence[str]
) -> list[dict[str, str]]:
    """The figures of these names, under each name condition by condition."""
    return [
        _figure(home, figure, number)
        for name in names
        for number, figure in enumerate(figures, start=1)
        if re.fullmatch(rf"{re.escape(name)}(-\d+)?", figure.stem.name)
    ]


def render(context: Mapping[str, Any]) -> str:
    """The template with its style and script inside; text from records is escaped."""
    from jinja2 import Environment, StrictUndefined

    here = files("fusionbench.report.html")
    texts = {name: (here / f"page.{name}").read_text(encoding="utf-8")
             for name in ("html.j2", "css", "js")}  # fmt: skip
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    template = environment.from_string(texts["html.j2"])
    return template.render(context, style=texts["css"], script=texts["js"])


def _breakable(text: str) -> Markup:
    """A name that a narrow column may break after `_` and `-`, not within a word."""
    return Markup("<wbr>").join(re.findall(r"[^_-]*[_-]|[^_-]+", text))


def _shown(name: str, rows: Sequence[Row]) -> list[Row]:
    """The columns that a reader needs; the CSV file has all of them."""
    keep = [
        key
        for key in _COLUMNS.get(name) or dict.fromkeys(key for row in rows for key in row)
        if not all(is_missing(row.get(key)) for row in rows)
    ]
    same = [key for key in _CONDITION if len({row.get(key) for row in rows}) == 1]
    return [{key: row.get(key) for key in keep if key not in same} for row in rows]


def _figure(home: Path, figure: Drawn, number: int) -> dict[str, str]:
    """A figure with its files; one too large for the page has no drawing."""
    svg = inline(figure.svg.read_text(encoding="utf-8"), f"f{number}", figure.title)
    near = figure.svg.is_relative_to(home)
    return {
        "id": f"figure-{figure.stem.name}",
        "title": figure.title,
        "condition": figure.condition,
        "reading": figure.reading,
        "svg": svg if len(svg) <= _LARGEST_FIGURE or not near else "",
        "file": figure.svg.relative_to(home).as_posix() if near else "",
        "data": figure.stem.with_suffix(".csv").relative_to(home).as_posix() if near else "",
    }


def _facts(records: Sequence[CellRecord]) -> list[Grid]:
    return [
        plain("methods", "Methods and versions", method_rows(records)),
        plain("tasks", "Tasks and data", task_rows(records)),
        plain("environment", "Environment", environment_rows(records)),
    ]


def _answers(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """The sentences of each condition, under its facts if there are several."""
    found: dict[str, list[str]] = {}
    for row in rows:
        facts = [str(row[name]) for name in _CONDITION if not is_missing(row.get(name))]
        found.setdefault(", ".join(facts), []).append(str(row["sentence"]))
    return [(facts if len(found) > 1 else "", said) for facts, said in found.items()]


def _counts(records: Sequence[CellRecord]) -> dict[str, int]:
    done = [record for record in records if record.status == "done"]
    return {
        "methods": len({record.label or record.spec.method for record in records}),
        "tasks": len({record.spec.task for record in records}),
        "seeds": len({record.spec.seed for record in done}),
        "cells": len(done),
    }


def _remarks(report: Material, ignored: Sequence[str]) -> dict[str, list[str]]:
    records = report.results.records
    found = {
        "Skipped and failed": coverage.reasons(records),
        "Tasks left out": coverage.left_out(report.planned),
        "Worth knowing": coverage.warnings(records),
        "Files that were ignored": [*report.problems, *ignored],
    }
    return {title: [line.removeprefix("- ") for line in lines] for title, lines in found.items()}
