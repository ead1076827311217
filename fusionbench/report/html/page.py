"""`report.html` from the tables and figures of a report: one file that fetches nothing."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusionbench import __version__
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import write_atomic
from fusionbench.records.history import Request
from fusionbench.records.text import checkpoint_name, file_only, impersonal, visible
from fusionbench.report import coverage
from fusionbench.report.figures.style import DARK, Drawn
from fusionbench.report.html.grid import Grid, pivots, plain, standings
from fusionbench.report.page import Material
from fusionbench.report.tables import Row, is_missing


def method_rows(records: Sequence[CellRecord]) -> list[Row]:
    """Each method with its version and settings, once for each combination that ran."""
    found = {
        (record.label or record.spec.method, record.spec.method_version, _settings(record)): {
            "method": record.label or record.spec.method,
            "version": record.spec.method_version,
            "where": "in the encoder" if record.in_encoder else "on cached features",
            "settings": _settings(record),
            "from": file_only(str(record.provenance.get("method", ""))),
        }
        for record in sorted(records, key=attrgetter("in_encoder"))
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
    "main": ("Scores", "task"),
    "planted": ("Planted ground truth", "task"),
}
"""Tables with methods as rows; all others are shown as they are."""
_TITLES: Mapping[str, str] = {
    "contrasts": "Differences and verdicts",
    "ablation": "Ablations",
    "cost": "Cost",
    "coverage": "Coverage, cell by cell",
    "layers": "Layers",
    "models": "Inside a language model",
    "reported": "Published numbers",
}
_CONDITION = ("track", "encoder", "steps", "training", "condition")
"""Shown only where they differ between the rows."""
_COLUMNS: Mapping[str, Sequence[str]] = {
    "contrasts": (
        "method", "name", "delta", "low", "high", "verdict", "mde", "p", "p_adjusted", "kind",
        "baseline", "control", "testset_low", "testset_high", "n_seeds", "n_examples", *_CONDITION,
    ),
}  # fmt: skip
_MOST_ROWS = 1000
"""Longer tables are left to their CSV files."""
_NOTES: Mapping[str, str] = {
    "summary": "Sorted by the mean over the suite: every task counts the same, from chance (0) to "
    "all right (100), ± half of the 95 % interval. Difference: method minus baseline, in points, "
    "with its 95 % interval. Added: trained parameters beyond the baseline's whole model.",
    "main": "Mean ± half of the 95 % interval, in percent; the highest mean of a column is bold, "
    "which does not say that it is the best method. Hover or tap a cell for n, p and MDE.",
    "planted": "Synthetic encoders with a known right answer: they test the suite itself and "
    "enter no mean.",
    "contrasts": "Differences, intervals and MDE in points; over several tasks a point is a "
    "hundredth of the way from chance to all right. A verdict needs both references beaten and "
    "a corrected p; undecided is shown with the smallest effect that would have been found.",
    "models": "Scores and measures as their papers report them; intervals of differences are for "
    "new images and take the trained runs as given.",
    "reported": "From papers, in their regime; never ranked together with the records.",
}


def write_html(
    page: Path, report: Material, tables: Mapping[str, Sequence[Row]], figures: Sequence[Drawn]
) -> None:
    """Write the page from the rows of all tables, by name, and the figures on disk."""
    records, planned = report.results.records, report.planned
    context = {
        "name": str(planned.study.get("name", "")) if planned else "",
        "note": str(planned.study.get("note", "")) if planned else "",
        "version": __version__,
        "counts": _counts(records),
        "answers": _answers(tables.get("answer", ())),
        "grids": grids(tables),
        "figures": [_figure(figure, number) for number, figure in enumerate(figures, start=1)],
        "facts": _facts(records),
        "coverage": plain("cells", "What ran", coverage.status_rows(records, planned)),
        "remarks": _remarks(report),
        "commands": commands(records, planned),
        "study": study_yaml(planned),
        "light": theme(dark=False),
        "dark": theme(dark=True),
    }
    write_atomic(page, visible(render(context)).encode())


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


def grids(tables: Mapping[str, Sequence[Row]]) -> list[Grid]:
    """The tables of a report in the order of `_PIVOTS` and `_TITLES`, then all others."""
    known = [*_PIVOTS, *_TITLES]
    found = list(standings("summary", "Leaderboard", tables.get("summary", ()), _NOTES["summary"]))
    tables = {name: rows for name, rows in tables.items() if name not in ("summary", "answer")}
    for name in sorted(tables, key=lambda name: known.index(name) if name in known else len(known)):
        rows = tables[name]
        if rows and name in _PIVOTS:
            title, across = _PIVOTS[name]
            found += pivots(name, title, rows, across, _NOTES[name])
        elif rows and len(rows) <= _MOST_ROWS:
            title = _TITLES.get(name, name.replace("_", " ").capitalize())
            found.append(plain(name, title, _shown(name, rows), _NOTES.get(name, "")))
    return found


def _shown(name: str, rows: Sequence[Row]) -> list[Row]:
    """The columns that a reader needs; the CSV file has all of them."""
    keep = [
        key
        for key in _COLUMNS.get(name) or dict.fromkeys(key for row in rows for key in row)
        if not all(is_missing(row.get(key)) for row in rows)
    ]
    same = [key for key in _CONDITION if len({row.get(key) for row in rows}) == 1]
    return [{key: row.get(key) for key in keep if key not in same} for row in rows]


def _figure(figure: Drawn, number: int) -> dict[str, str]:
    svg = figure.svg.read_text(encoding="utf-8")
    return {
        "id": f"figure-{figure.stem.name}",
        "title": figure.title,
        "condition": figure.condition,
        "reading": figure.reading,
        "svg": inline(svg, f"f{number}", figure.title),
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


def _remarks(report: Material) -> dict[str, list[str]]:
    records = report.results.records
    found = {
        "Skipped and failed": coverage.reasons(records),
        "Tasks left out": coverage.left_out(report.planned),
        "Worth knowing": coverage.warnings(records),
        "Files that were ignored": report.problems,
    }
    return {title: [line.removeprefix("- ") for line in lines] for title, lines in found.items()}
