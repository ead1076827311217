"""`tables/reported` and `tables/imported`: numbers of papers and of other tools.

`reported.csv` holds numbers from papers and their repositories. A number shares a row with one of
ours only if track, encoder, language model, benchmark and metric are equal; all others have tables
of their own, in the order of the file. Records of other tools enter no mean and no test.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files

import numpy as np

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import Condition, ScoreTable
from fusionbench.report.page import Page
from fusionbench.report.tables import (
    GridRow,
    Row,
    Summary,
    conditions,
    latex_grid,
    markdown,
    over_seeds,
)

_TRACK = "vlm"
"""These papers train a projector, or more, in front of a language model."""
_HUB = "hf:"
"""In front of the id of a language model."""
_OTHER = """\
None of these results was made in the regime of a published number (a language model behind the same
encoder, on the same benchmark, in the same metric), so nothing published can be compared with them.
The tables below are a record of what was published, in the order of the sources;
they rank nothing."""
_SAME = """\
The same encoder, language model, benchmark and metric; whether the training data agree has to be
read from the two descriptions. Published numbers come from one run each and have no interval."""
_EVIDENCE = """\
"first-hand" was read in the paper or its repository; "second-hand" in a summary, a copy or someone
else's table, and should be checked before it is quoted."""

_OUR_MEASURES: Mapping[tuple[str, str], tuple[str, str, float]] = {
    ("docvqa", "ANLS x100"): ("docvqa", "anls", 100),
    ("gqa", "accuracy"): ("gqa", "accuracy", 100),
    ("gqa", "accuracy testdev-balanced"): ("gqa", "accuracy", 100),
    ("mme", "perception score"): ("mme", "perception", 1),
    ("mme_p", "perception score"): ("mme", "perception", 1),
    ("mmmu", "accuracy val"): ("mmmu", "accuracy", 100),
    ("pope", "score (LLaVA protocol)"): ("pope", "f1_mean", 100),
    ("pope", "score (LLaVA protocol; mean F1 by convention, not stated in table)"): (
        "pope",
        "f1_mean",
        100,
    ),
    ("scienceqa", "total accuracy"): ("scienceqa", "accuracy", 100),
    ("scienceqa_img", "IMG-accuracy"): ("scienceqa", "accuracy_img", 100),
    ("scienceqa_img", "IMG-accuracy test"): ("scienceqa", "accuracy_img", 100),
    ("textvqa", "VQA soft accuracy val (OCR-token prompt)"): ("textvqa_ocr", "accuracy", 100),
}
"""Task and metric of a published number; our task, measure of a record, and factor to its unit.

What is not here (another split, a metric that the source does not state) has no twin of ours.
"""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One published number."""

    method: str
    ours: str
    """The name under which the method is registered here; empty where it is not."""
    given_by: str
    """Authors of the table that contains it."""
    base_model: str
    regime: str
    encoder: str
    reader: str
    """The language model."""
    benchmark: str
    task: str
    """Name of the task here."""
    metric: str
    value: str
    """As it was printed."""
    evidence: str
    source: str
    url: str

    @property
    def first_hand(self) -> bool:
        """Whether it was read at its source."""
        return self.evidence.startswith("first-hand")

    def comparable(self, condition: Condition) -> bool:
        """True if track, encoder and language model are those of this number."""
        training = condition.training
        if training is None or condition.track != _TRACK or not (self.encoder and self.reader):
            return False
        language = training.language.removeprefix(_HUB)
        return (condition.encoder, language) == (self.encoder, self.reader)


@cache
def reported() -> tuple[Reported, ...]:
    """All published numbers, in the order of the file."""
    text = (files("fusionbench.report") / "reported.csv").read_text(encoding="utf-8")
    return tuple(Reported(**row) for row in csv.DictReader(text.splitlines()))


def reported_page(tables: Sequence[ScoreTable]) -> Page:
    """The section of a report: `tables/reported`; empty where no method was published."""
    text = reported_section(tables)
    return Page(markdown=text, rows=reported_rows(tables), latex=_latex(tables)) if text else Page()


def reported_section(tables: Sequence[ScoreTable]) -> str:
    """Published numbers of the methods in these tables, as Markdown; empty where there are none."""
    numbers = _of_methods(tables)
    if not numbers:
        return ""
    shared = [_shared_row(number, *ours) for number in numbers for ours in _ours(number, tables)]
    parts = [_SAME, "", markdown(shared)] if shared else [_OTHER, ""]
    parts += [_EVIDENCE, ""]
    for (base_model, regime, _), here in _by_table(numbers).items():
        parts += [f"### {base_model}: {regime}", "", _origin(here[0]), ""]
        parts += [markdown(_published_rows(here))]
    left = len(reported()) - len(numbers)
    parts += [f"{left} numbers of methods that are not in these results are left out."]
    return "\n".join(parts) + "\n"


def reported_rows(tables: Sequence[ScoreTable]) -> list[Row]:
    """One row for every published number; `ours_*` is filled where the regime is the same."""
    rows = []
    for number in reported():
        found = list(_ours(number, tables)) or [("", Summary(why=""))]
        rows += [_long_row(number, title, summary) for title, summary in found]
    return rows


def _of_methods(tables: Sequence[ScoreTable]) -> list[Reported]:
    names = {_plain(name) for table in tables for name in table.methods}
    return [number for number in reported() if number.ours in names]


def _by_table(numbers: Sequence[Reported]) -> dict[tuple[str, str, str], list[Reported]]:
    """Numbers by base model, regime and source, in the order of the file."""
    found: dict[tuple[str, str, str], list[Reported]] = {}
    for number in numbers:
        place = number.base_model, number.regime, number.source
        found.setdefault(place, []).append(number)
    return found


def _latex(tables: Sequence[ScoreTable]) -> str:
    grids = [
        latex_grid(
            _published_rows(here),
            f"Published ({here[0].evidence}): {source}; {base_model}, {regime}",
            f"reported-{number}",
        )
        for number, ((base_model, regime, source), here) in enumerate(
            _by_table(_of_methods(tables)).items(), start=1
        )
    ]
    return "\n".join(grids)


def _ours(number: Reported, tables: Sequence[ScoreTable]) -> Iterator[tuple[str, Summary]]:
    """Our values of the same method, metric and regime, with their condition.

    A summary has hundredths of the published unit, as its text is in percent.
    """
    task, measure, factor = _OUR_MEASURES.get((number.task, number.metric), ("", "", 0.0))
    for table in tables:
        names = [one.name for one in table.tasks]
        if not number.comparable(table.condition) or task not in names:
            continue
        for row, name in enumerate(table.methods):
            if _plain(name) == number.ours:
                runs = table.runs(row, names.index(task))
                values = [one.measures[measure] for one in runs if measure in one.measures]
                if values:
                    yield table.condition.title, over_seeds(np.array(values) * factor / 100)


def _plain(name: str) -> str:
    """A method's name without its suffix."""
    return name.split(" (")[0]


def _shared_row(number: Reported, title: str, summary: Summary) -> Row:
    return {
        "benchmark": number.benchmark,
        "method": number.ours,
        "published": f"{number.value} ({number.given_by})",
        "its regime": number.regime,
        "its metric": number.metric,
        "evidence": number.evidence,
        "ours": summary.text,
        "our metric": _OUR_MEASURES[number.task, number.metric][1],
        "our regime": title,
    }


def _origin(number: Reported) -> str:
    return f"Given by {number.given_by} ({number.evidence}): {number.source}, <{number.url}>"


def _published_rows(numbers: Sequence[Reported]) -> list[Row]:
    """A row for each method of one published table."""
    titles = list(dict.fromkeys(_benchmark(number) for number in numbers))
    rows: dict[str, Row] = {}
    for number in numbers:
        row = rows.setdefault(number.method, {"method": number.method} | dict.fromkeys(titles, ""))
        row[_benchmark(number)] = number.value
    return list(rows.values())


_PLAIN_METRICS = ("accuracy", "as reported")


def _benchmark(number: Reported) -> str:
    """OCRBench has a score for each of its parts; elsewhere the benchmark names the column."""
    several = number.benchmark == "OCRBench" and number.metric not in _PLAIN_METRICS
    return f"{number.benchmark} {number.metric}" if several else number.benchmark


def _long_row(number: Reported, title: str, summary: Summary) -> Row:
    ours = {"mean": summary.mean, "low": summary.low, "high": summary.high}
    return {
        **vars(number),
        # Prints as published (`21.00`) and sorts as a number.
        "value": Decimal(number.value),
        "comparable": bool(title),
        **{f"ours_{key}": 100 * value for key, value in ours.items()},
        "ours_runs": summary.runs if title else None,
        "ours_condition": title,
    }


_NOTE = """\
Numbers that another tool computed. *Score* is the mean over questions of the metric named there, in
percent; where the tool's samples hold no number for each question it is the tool's own aggregate.
*Readings* are the tool's numbers as its files have them. Chance is not known, and no number of this
section enters a mean or a test."""
_ERROR = "_stderr"


def imported_page(tables: Sequence[ScoreTable]) -> Page:
    """One table for each tool and condition: a row for each model, task and seed."""
    texts, latex, rows = [], [], list[Row]()
    for table in tables:
        cells = sorted(table.cells.items())
        grid = [_row(table, place, record) for place, record in cells]
        title = table.condition.title
        notes = dict.fromkeys(note for _, record in cells for note in record.notes)
        lines = [f"- {note}" for note in notes]
        texts.append("\n".join([f"### {title}", "", markdown(grid), *lines]) + "\n")
        latex.append(latex_grid(grid, title, f"imported-{table.condition.label}"))
        rows += [row for place, record in cells for row in _long(table, place, record)]
    note = f"{_NOTE}\n\n" if texts else ""
    return Page(markdown=note + "\n".join(texts), rows=rows, latex="\n".join(latex))


def _row(table: ScoreTable, place: tuple[int, int, int], record: CellRecord) -> GridRow:
    method, task, seed = place
    readings = {k: v for k, v in record.measures.items() if _ERROR not in k}
    score = "–" if record.score is None else f"{100 * record.score:.1f} ({record.metric})"
    return {
        "method": table.methods[method],
        "task": table.tasks[task].name,
        "seed": str(table.seeds[seed]),
        "questions": str(record.examples),
        "score": score,
        "outcomes": "yes" if record.outcomes else "no",
        "readings": ", ".join(f"{name} {value:.6g}" for name, value in readings.items()),
    }


def _long(table: ScoreTable, place: tuple[int, int, int], record: CellRecord) -> Iterator[Row]:
    """A row for each number of the tool."""
    method, task, seed = place
    for name, value in record.measures.items():
        yield {
            **conditions(table),
            "source": record.source,
            "method": table.methods[method],
            "task": table.tasks[task].name,
            "seed": table.seeds[seed],
            "questions": record.examples,
            "metric": record.metric,
            "score": record.score,
            "reading": name,
            "value": value,
        }
