"""A paper's page: what differs, its tables in Markdown and LaTeX, all numbers as CSV."""

import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fusionbench.api.errors import disk_error, unknown
from fusionbench.records.files import write_atomic
from fusionbench.records.pairs import Measured, Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis import cell_interval, suite_interval
from fusionbench.report.contrasts import Measurer, Scope
from fusionbench.report.published import Reported, reported
from fusionbench.report.tables import (
    GridRow,
    Row,
    Summary,
    comma_separated,
    digits,
    interval,
    latex_grid,
    markdown_grid,
)

# The shapes of four papers' tables: `papers.yaml` as data.


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a paper's table."""

    row: str
    """As the paper calls it."""
    ours: str = ""
    """The method here; empty if there is none."""
    why: str = ""
    """Why there is none."""
    method: str = ""
    """Its name in `reported.csv`."""
    reported: tuple[str, ...] = ()
    """In whose tables its published numbers stand."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One table."""

    name: str
    title: str
    against: str
    """The method that the others are compared with."""
    rows: tuple[Line, ...]
    benchmarks: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()

    def published(self, line: Line) -> dict[str, Reported]:
        """The line's published numbers by benchmark; the first of the file where two exist.

        OCRBench has a number for each of its parts and one for all; it is the last that is meant.
        """
        found: dict[str, Reported] = {}
        for number in reported():
            here = number.method == line.method and number.given_by in line.reported
            whole = not number.metric.endswith(_PARTS)
            if here and whole and number.base_model in self.base_models:
                found.setdefault(number.benchmark, number)
        return {name: found[name] for name in self.benchmarks if name in found}


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper."""

    name: str
    title: str
    paper: str
    """Authors, venue, number."""
    regime: str
    differs: tuple[str, ...]
    tables: tuple[Shape, ...]

    @property
    def methods(self) -> list[str]:
        """Every method of ours that its tables need."""
        lines = [line for table in self.tables for line in table.rows]
        names = [line.ours for line in lines] + [table.against for table in self.tables]
        return [name for name in dict.fromkeys(names) if name]


_PARTS = ("Recognition", "VQA-Scene", "VQA-Doc", "KIE", "HMER")


@cache
def papers() -> Mapping[str, Paper]:
    """All papers by name."""
    import yaml

    text = (files("fusionbench.report") / "papers.yaml").read_text(encoding="utf-8")
    return {name: _paper(name, values) for name, values in yaml.safe_load(text).items()}


def paper(name: str) -> Paper:
    """The paper of that name. Raises UserError with the nearest one."""
    if name not in papers():
        raise unknown("paper", name, papers())
    return papers()[name]


def _paper(name: str, values: Mapping[str, Any]) -> Paper:
    tables = tuple(_shape(table) for table in values["tables"])
    return Paper(name=name, **{**values, "differs": tuple(values["differs"]), "tables": tables})


def _shape(values: Mapping[str, Any]) -> Shape:
    lines = tuple(
        Line(**{**line, "reported": tuple(line.get("reported", ()))}) for line in values["rows"]
    )
    lists = {name: tuple(values.get(name, ())) for name in ("benchmarks", "base_models")}
    return Shape(**{**values, **lists, "rows": lines})


# A table of a paper with our numbers: scores with intervals, gains against its baseline.


@dataclass(frozen=True, kw_only=True)
class Filled:
    """One row: the paper's and ours."""

    line: Line
    published: Mapping[str, Reported]
    gap: str = ""
    """Why there are no scores of ours."""
    scores: Mapping[Scope, Summary]
    """The suite and its groups from chance (0) to perfect (1), a task in its own metric."""
    gains: Mapping[Scope, Measured]
    """Against the table's baseline; empty for the baseline itself."""


class Filler:
    """Fills tables from one condition."""

    def __init__(self, results: Results, table: ScoreTable) -> None:
        self.results = results
        self.table = table
        self.measurer = Measurer(results, table)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The suite, its groups, its tasks."""
        return self.measurer.scopes

    def fill(self, shape: Shape) -> list[Filled]:
        """Every row of a table."""
        return [self._row(shape, line) for line in shape.rows]

    def _row(self, shape: Shape, line: Line) -> Filled:
        published = shape.published(line)
        if line.ours not in self.table.methods:
            gap = "not run" if line.ours else line.why or "not here"
            return Filled(line=line, published=published, gap=gap, scores={}, gains={})
        method = self.table.methods.index(line.ours)
        scores = {scope: self._score(method, scope) for scope in self.scopes}
        gains: Mapping[Scope, Measured] = {}
        if line.ours != shape.against and shape.against in self.table.methods:
            gains = self.measurer.against(method, self.table.methods.index(shape.against))
        return Filled(line=line, published=published, scores=scores, gains=gains)

    def _score(self, method: int, scope: Scope) -> Summary:
        if scope.level == "task":
            return cell_interval(self.results, self.table, method, scope.tasks[0])
        return suite_interval(self.results, self.table, method, scope)


_DIFFERS = (
    'The rows are the paper\'s, the columns "published" its own numbers on its own benchmarks, all '
    "others ours. **The two are not comparable.** The paper's regime: {regime}. Ours stands above "
    "each table: one frozen encoder, a small reader trained on each of our tasks. What can be "
    "compared is whether the same rows gain, as far as the intervals allow."
)
_READING = """\
Ours: mean ± half of the 95 % interval; `suite` and the groups count every task from chance (0) to
perfect (100), a task is in its own metric. Gain: paired difference from `{against}` with its 95 %
interval for new runs and new images, exploratory and uncorrected; no verdict below 4 runs. †: read
second-hand."""


def write_paper(paper: Paper, results: Results, home: Path) -> Path:
    """Write the page, and a CSV and a LaTeX file for each table; the page's path.

    Raises UserError if the folder cannot be written.
    """
    tables = [table.pick(table.suite) for table in results.tables if table.suite.any()]
    fillers = [Filler(results, table) for table in tables]
    filled = {shape: [filler.fill(shape) for filler in fillers] for shape in paper.tables}
    contents = {f"{paper.name}.md": "\n".join(_page(paper, fillers, filled))}
    for shape in paper.tables:
        stem = f"{paper.name}-{shape.name}"
        rows = [r for f, lines in zip(fillers, filled[shape], strict=True)
                for r in _long_rows(f, shape, lines)]  # fmt: skip
        contents[f"{stem}.csv"] = comma_separated(rows)
        contents[f"{stem}.tex"] = "\n".join(_latex_paper(paper, shape, fillers, filled[shape]))
    try:
        home.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_atomic(home / name, text.encode())
    except OSError as error:
        raise disk_error(error, home) from error
    return home / f"{paper.name}.md"


def _page(
    paper: Paper, fillers: Sequence[Filler], filled: dict[Shape, list[list[Filled]]]
) -> Iterator[str]:
    told = textwrap.fill(_DIFFERS.format(regime=paper.regime), 100)
    yield f"# {paper.title}\n\n{paper.paper}\n\n{told}\n"
    yield from (f"- {note}" for note in paper.differs)
    yield ""
    yield from _missing(paper, fillers)
    for shape, by_filler in filled.items():
        yield f"## {shape.title}\n\n{_READING.format(against=shape.against)}\n"
        for filler, rows in zip(fillers, by_filler, strict=True):
            yield f"### {filler.table.condition.title}\n"
            yield markdown_grid(_shape_rows(filler, shape, rows))
            yield markdown_grid(_task_rows(filler, rows))


def _missing(paper: Paper, fillers: Sequence[Filler]) -> Iterator[str]:
    """What to run so that no row of ours is empty."""
    here = {name for filler in fillers for name in filler.table.methods}
    if lacking := [name for name in paper.methods if name not in here]:
        names = shlex.quote(",".join(lacking))
        yield (
            "Rows without a score of ours were not run in this study; the same study with "
            f"`--methods {names}` fills them.\n"
        )


def _shape_rows(filler: Filler, shape: Shape, rows: Sequence[Filled]) -> list[GridRow]:
    """The paper's table: ours over the suite and its groups, then its published columns."""
    wide = [scope for scope in filler.scopes if scope.level != "task"]
    return [
        {"row": one.line.row, "ours": one.line.ours or f"({one.gap})"}
        | {scope.name: _score(one, scope) for scope in wide}
        | {"gain on the suite": _gain(one, filler)}
        | {f"published {name}": _published(one, name) for name in shape.benchmarks}
        for one in rows
    ]


def _task_rows(filler: Filler, rows: Sequence[Filled]) -> list[GridRow]:
    tasks = [scope for scope in filler.scopes if scope.level == "task"]
    return [
        {"row": one.line.row} | {scope.name: one.scores[scope].text for scope in tasks}
        for one in rows
        if one.scores
    ]


def _score(one: Filled, scope: Scope) -> str:
    if one.scores:
        return one.scores[scope].text
    return one.gap if one.line.ours else "-"


def _gain(one: Filled, filler: Filler) -> str:
    found = one.gains.get(filler.scopes[0])
    return interval(found.estimate) if found else ""


def _published(one: Filled, benchmark: str) -> str:
    number = one.published.get(benchmark)
    return "" if number is None else number.value + ("" if number.first_hand else "†")


def _latex_paper(
    paper: Paper, shape: Shape, fillers: Sequence[Filler], by_filler: Sequence[Sequence[Filled]]
) -> Iterator[str]:
    for filler, rows in zip(fillers, by_filler, strict=True):
        title = f"{paper.title}: {shape.title}; {filler.table.condition.title}"
        label = f"{paper.name}-{shape.name}-{filler.table.condition.encoder}"
        note = "Published columns: another regime, not comparable; † read second-hand."
        yield latex_grid(_shape_rows(filler, shape, rows), f"{title}. {note}", label)


def _long_rows(filler: Filler, shape: Shape, rows: Sequence[Filled]) -> Iterator[Row]:
    """One row for each row of the table and each column, published or ours."""
    for one in rows:
        start = {"table": shape.name, "row": one.line.row, "method": one.line.ours}
        start["condition"] = filler.table.condition.title
        for name, number in one.published.items():
            columns = {"kind": "published", "column": name, "published": number.value}
            sources = {"evidence": number.evidence, "source": number.source}
            yield _NOTHING | start | columns | sources
        if not one.scores:
            yield _NOTHING | start | {"kind": "ours", "why_not": one.gap}
        for scope, score in one.scores.items():
            found = one.gains.get(scope)
            gain = found.estimate if found else None
            low, high = gain.interval() if gain else (None, None)
            yield _NOTHING | start | {
                "kind": "ours",
                "column": scope.name,
                "mean": digits(score.mean),
                "low": digits(score.low),
                "high": digits(score.high),
                "n_seeds": str(score.runs),
                "gain": digits(float(gain.value) if gain else None),
                "gain_low": digits(None if low is None else float(low)),
                "gain_high": digits(None if high is None else float(high)),
                "against": shape.against if found else "",
                "why_not": "" if score.runs else score.why,
            }  # fmt: skip


_NOTHING: Row = dict.fromkeys(
    (
        *("table", "row", "method", "condition", "kind", "column", "mean", "low", "high"),
        *("n_seeds", "gain", "gain_low", "gain_high", "against", "why_not"),
        *("published", "evidence", "source"),
    ),
    "",
)
