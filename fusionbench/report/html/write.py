"""`report.html` from the tables and figures of a report: one file that fetches nothing."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusionbench import __version__
from fusionbench.records.cell import CellRecord
from fusionbench.records.files import write_atomic
from fusionbench.report import coverage
from fusionbench.report.figures.drawing import Drawn
from fusionbench.report.html import facts
from fusionbench.report.html.grid import Grid, pivots, plain
from fusionbench.report.html.inline import inline, theme
from fusionbench.report.sections import Material as Report
from fusionbench.report.tables import Row

_PIVOTS: Mapping[str, tuple[str, str]] = {
    "summary": ("Means over the suite", "aggregate"),
    "main": ("Scores", "task"),
    "planted": ("Planted ground truth", "task"),
}
"""Tables with methods down and something along; all others are shown as they are."""
_TITLES: Mapping[str, str] = {
    "contrasts": "Differences and verdicts",
    "ablation": "Ablations",
    "cost": "Cost",
    "coverage": "Coverage, cell by cell",
    "layers": "Layers",
    "reported": "Published numbers",
}
_COLUMNS: Mapping[str, Sequence[str]] = {
    "contrasts": (
        "method", "name", "delta", "low", "high", "verdict", "mde", "p", "p_adjusted", "kind",
        "baseline", "control", "testset_low", "testset_high", "n_seeds", "n_examples",
    ),
}  # fmt: skip
_CONDITION = ("track", "encoder", "steps")
"""Shown only where they differ between the rows."""
_MOST_ROWS = 1000
"""A longer table is for programs, and stays in its CSV file."""
_NOTES: Mapping[str, str] = {
    "summary": "Mean ± half of the 95 % interval over runs, in percent; it stands only where all "
    "tasks ran. Intervals of cells compare no two methods.",
    "main": "Mean ± half of the 95 % interval, in percent; the highest mean of a column is bold, "
    "which does not say that it is the best method. Hover or tap a cell for n, p and MDE.",
    "planted": "Synthetic encoders with a known right answer: they test the suite itself and "
    "enter no mean.",
    "contrasts": "Differences, intervals and MDE in points; over several tasks a point is a "
    "hundredth of the way from chance to all right. A verdict needs both references beaten and "
    "a corrected p; undecided stands with the smallest effect it could have found.",
    "reported": "From papers, in their regime; never ranked together with the records.",
}


def write_html(
    page: Path, report: Report, tables: Mapping[str, Sequence[Row]], figures: Sequence[Drawn]
) -> None:
    """Write the page from the rows of all tables, by name, and the figures as they lie on disk."""
    records, planned = report.results.records, report.planned
    context = {
        "name": str(planned.study.get("name", "")) if planned else "",
        "note": str(planned.study.get("note", "")) if planned else "",
        "version": __version__,
        "counts": _counts(records),
        "grids": grids(tables),
        "figures": [_figure(figure, number) for number, figure in enumerate(figures, start=1)],
        "facts": _facts(records),
        "coverage": plain("cells", "What ran", coverage.status_rows(records, planned)),
        "remarks": _remarks(report),
        "commands": facts.commands(records, planned),
        "study": facts.study_yaml(planned),
        "light": theme(dark=False),
        "dark": theme(dark=True),
    }
    write_atomic(page, render(context).encode())


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
    """The tables of a report: scores first, what is not known here last and as it is."""
    known = [*_PIVOTS, *_TITLES]
    found: list[Grid] = []
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
    keep = [key for key in _COLUMNS.get(name) or rows[0] if any(row.get(key) for row in rows)]
    same = [key for key in _CONDITION if len({row.get(key) for row in rows}) == 1]
    return [{key: row[key] for key in keep if key in row and key not in same} for row in rows]


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
        plain("methods", "Methods and versions", facts.method_rows(records)),
        plain("tasks", "Tasks and data", facts.task_rows(records)),
        plain("environment", "Environment", facts.environment_rows(records)),
    ]


def _counts(records: Sequence[CellRecord]) -> dict[str, int]:
    done = [record for record in records if record.status == "done"]
    return {
        "methods": len({record.label or record.spec.method for record in records}),
        "tasks": len({record.spec.task for record in records}),
        "seeds": len({record.spec.seed for record in done}),
        "cells": len(done),
    }


def _remarks(report: Report) -> dict[str, list[str]]:
    records = report.results.records
    found = {
        "Skipped and failed": coverage.reasons(records),
        "Tasks left out": coverage.left_out(report.planned),
        "Worth knowing": coverage.warnings(records),
        "Files that were ignored": report.problems,
    }
    return {title: [line.removeprefix("- ") for line in lines] for title, lines in found.items()}
