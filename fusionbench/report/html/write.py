"""`report.html` from the tables and figures of a report: one file that fetches nothing."""

import csv
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusionbench import __version__
from fusionbench.cache import write_atomic
from fusionbench.history import Run
from fusionbench.records import CellRecord
from fusionbench.report import coverage
from fusionbench.report.figures.drawing import Drawn
from fusionbench.report.html import facts
from fusionbench.report.html.grid import Grid, pivots, plain
from fusionbench.report.html.inline import inline, theme
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
    "layers": "Layers",
    "reported": "Published numbers",
}
_COLUMNS: Mapping[str, Sequence[str]] = {
    "contrasts": (
        "method", "name", "baseline", "control", "delta", "low", "high", "testset_low",
        "testset_high", "p", "p_adjusted", "verdict", "mde", "n_seeds", "n_examples", "kind",
    ),
}  # fmt: skip
_MOST_ROWS = 3000
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
    page: Path,
    tables: Path,
    figures: Sequence[Drawn],
    records: Sequence[CellRecord],
    planned: Run | None,
) -> None:
    """Write the page from the CSV files in `tables` and the drawn figures."""
    context = {
        "name": str(planned.study.get("name", "")) if planned else "",
        "note": str(planned.study.get("note", "")) if planned else "",
        "version": __version__,
        "counts": _counts(records),
        "grids": grids(tables),
        "figures": [_figure(figure, number) for number, figure in enumerate(figures, start=1)],
        "facts": _facts(records),
        "coverage": plain("coverage", "What ran", coverage.status_rows(records, planned)),
        "remarks": _remarks(records, planned),
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


def grids(folder: Path) -> list[Grid]:
    """The CSV files of a folder: scores first, what is unknown last and as it is."""
    known = [*_PIVOTS, *_TITLES]
    paths = sorted(folder.glob("*.csv"), key=lambda path: _place(known, path.stem))
    found: list[Grid] = []
    for path in paths:
        rows = _read(path)
        if not rows:
            continue
        if path.stem in _PIVOTS:
            title, across = _PIVOTS[path.stem]
            found += pivots(path.stem, title, rows, across, _NOTES[path.stem])
        elif len(rows) <= _MOST_ROWS:
            title = _TITLES.get(path.stem, path.stem.replace("_", " ").capitalize())
            note = _NOTES.get(path.stem, "")
            found.append(plain(path.stem, title, _shown(path.stem, rows), note))
    return found


def _shown(name: str, rows: Sequence[Row]) -> list[Row]:
    """The columns that a reader needs; the CSV file has all of them."""
    keep = _COLUMNS.get(name) or list(rows[0])
    return [{key: row[key] for key in keep if key in row} for row in rows]


def _place(known: Sequence[str], name: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


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


def _remarks(records: Sequence[CellRecord], planned: Run | None) -> dict[str, list[str]]:
    found = {
        "Skipped and failed": coverage.reasons(records),
        "Tasks left out": coverage.left_out(planned),
        "Worth knowing": coverage.warnings(records),
    }
    return {title: [line.removeprefix("- ") for line in lines] for title, lines in found.items()}
