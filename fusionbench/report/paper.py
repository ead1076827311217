"""`fusionbench paper`: a paper's tables with its published numbers and ours."""

import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from fusionbench.api.errors import disk_error, unknown
from fusionbench.records.files import write_atomic
from fusionbench.records.pairs import Measured, Results
from fusionbench.records.scores import ScoreTable
from fusionbench.records.text import markdown_page
from fusionbench.records.yaml_files import YamlMapping, parse_section
from fusionbench.report.analysis import cell_interval, suite_interval
from fusionbench.report.contrasts import Measurer, Scope, absent
from fusionbench.report.published import Reported, reported
from fusionbench.report.tables import (
    GridRow,
    Row,
    Summary,
    comma_separated,
    interval,
    latex_grid,
    markdown,
)
from fusionbench.stats.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of a paper's table."""

    row: str
    """As the paper calls it."""
    ours: str = ""
    """The method here; empty if there is none."""
    why: str = ""
    """Why there is none."""
    vlm: str = ""
    """The method in the track `vlm`, where it is another, or the track `probe` has none."""
    method: str = ""
    """Its name in `reported.csv`."""
    reported: tuple[str, ...] = ()
    """`given_by` of its published numbers in `reported.csv`."""

    def here(self, track: str) -> str:
        """The method of ours in a track; empty if there is none."""
        return self.vlm or self.ours if track == VLM else self.ours


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of a paper."""

    name: str
    title: str
    against: str
    """The method that the others are compared with."""
    rows: tuple[PaperRow, ...]
    benchmarks: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()

    def published(self, row: PaperRow) -> dict[str, Reported]:
        """The row's published numbers by benchmark; the first of the file where two exist.

        Of OCRBench, which has a number for each part, the total.
        """
        found: dict[str, Reported] = {}
        for number in reported():
            here = number.method == row.method and number.given_by in row.reported
            total = not number.metric.endswith(_PARTS)
            if here and total and number.base_model in self.base_models:
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
    tables: tuple[PaperTable, ...]

    def methods(self, track: str) -> list[str]:
        """Every method of ours that its tables need in a track."""
        names = [row.here(track) for table in self.tables for row in table.rows]
        names += [table.against for table in self.tables]
        return [name for name in dict.fromkeys(names) if name]


PROBE, VLM = "probe", "vlm"
_PARTS = ("Recognition", "VQA-Scene", "VQA-Doc", "KIE", "HMER")


@cache
def papers() -> Mapping[str, Paper]:
    """All papers by name."""
    text = (files("fusionbench.report") / "papers.yaml").read_text(encoding="utf-8")
    section = parse_section(text, "papers.yaml", "papers", hint=_HINT)
    return {name: _paper(name, values) for name, values in section.items()}


def paper(name: str) -> Paper:
    """The paper of that name. Raises UserError with the nearest one."""
    if name not in papers():
        raise unknown("paper", name, papers())
    return papers()[name]


_HINT = "each paper is a mapping under its name"
T = TypeVar("T", PaperRow, PaperTable, Paper)


def _paper(name: str, values: YamlMapping) -> Paper:
    tables = tuple(
        _built(PaperTable, table, rows=tuple(_built(PaperRow, row) for row in table["rows"]))
        for table in values["tables"]
    )
    return _built(Paper, values, name=name, tables=tables)


def _built(cls: type[T], section: YamlMapping, **parts: Any) -> T:
    """The dataclass of a mapping, lists as tuples. Raises UserError for a wrong or missing key."""
    known = {one.name: one.default is MISSING for one in fields(cls)}
    section.check_keys(known, needed=[name for name in known if known[name] and name not in parts])
    lists = {key: tuple(found) for key, found in section.items() if isinstance(found, list)}
    return cls(**{**section, **lists, **parts})


@dataclass(frozen=True, kw_only=True)
class FilledRow:
    """One row of a paper's table with its published numbers and ours."""

    row: PaperRow
    ours: str
    """The method in this track; empty if there is none."""
    published: Mapping[str, Reported]
    gap: str = ""
    """Why there are no scores of ours."""
    scores: Mapping[Scope, Summary] = field(default_factory=dict)
    """The suite and its groups from chance (0) to perfect (1), a task in its own metric."""
    gains: Mapping[Scope, Measured] = field(default_factory=dict)
    """Against the table's baseline; empty for the baseline itself."""


class PaperScores:
    """Scores and gains of one condition, for the tables of a paper."""

    def __init__(self, results: Results, table: ScoreTable) -> None:
        self.results = results
        self.table = table
        self.measurer = Measurer(results, table)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The suite, its groups, its tasks."""
        return self.measurer.scopes

    def fill(self, shape: PaperTable) -> list[FilledRow]:
        """Every row of a table."""
        return [self._filled(shape, row) for row in shape.rows]

    def _filled(self, shape: PaperTable, row: PaperRow) -> FilledRow:
        published, methods = shape.published(row), self.table.methods
        ours = row.here(self.table.condition.track)
        if ours not in methods:
            gap = absent(self.table, ours) if ours else row.why or "not here"
            return FilledRow(row=row, ours=ours, published=published, gap=gap)
        method = methods.index(ours)
        gains: Mapping[Scope, Measured] = {}
        if ours != shape.against and shape.against in methods:
            gains = self.measurer.against(method, methods.index(shape.against))
        scores = {scope: self._score(method, scope) for scope in self.scopes}
        return FilledRow(row=row, ours=ours, published=published, scores=scores, gains=gains)

    def _score(self, method: int, scope: Scope) -> Summary:
        if scope.level == "task":
            return cell_interval(self.results, self.table, method, scope.tasks[0])
        return suite_interval(self.results, self.table, method, scope)


Filled = Sequence[tuple[PaperScores, Sequence[FilledRow]]]
"""The rows of one table in each condition."""

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
    tables = [table.pick(~table.planted) for table in results.tables if not table.planted.all()]
    conditions = [PaperScores(results, table) for table in tables]
    filled: list[tuple[PaperTable, Filled]] = [
        (shape, [(one, one.fill(shape)) for one in conditions]) for shape in paper.tables
    ]
    contents = {f"{paper.name}.md": "\n".join(_page(paper, results, conditions, filled))}
    for shape, by_condition in filled:
        stem = f"{paper.name}-{shape.name}"
        long = [line for one, rows in by_condition for line in _long_rows(one, shape, rows)]
        contents[f"{stem}.csv"] = comma_separated(long)
        contents[f"{stem}.tex"] = "\n".join(_latex_paper(paper, shape, by_condition))
    try:
        home.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            safe = markdown_page(text) if name.endswith(".md") else text
            write_atomic(home / name, safe.encode())
    except OSError as error:
        raise disk_error(error, home) from error
    return home / f"{paper.name}.md"


def run_command(name: str, folder: Path) -> str:
    """The command that runs what a paper's tables lack in this folder."""
    return shlex.join(["fusionbench", "paper", name, str(folder), "--run"])


def _page(
    paper: Paper,
    results: Results,
    conditions: Sequence[PaperScores],
    filled: Sequence[tuple[PaperTable, Filled]],
) -> Iterator[str]:
    note = textwrap.fill(_DIFFERS.format(regime=paper.regime), 100)
    yield f"# {paper.title}\n\n{paper.paper}\n\n{note}\n"
    yield from (f"- {note}" for note in paper.differs)
    yield ""
    yield from _missing(paper, conditions, results.store.folder)
    for shape, by_condition in filled:
        yield f"## {shape.title}\n\n{_READING.format(against=shape.against)}\n"
        for one, rows in by_condition:
            yield f"### {one.table.condition.title}\n"
            yield markdown(_paper_grid(one, shape, rows))
            yield markdown(_task_grid(one, rows))


def _missing(paper: Paper, conditions: Sequence[PaperScores], folder: Path) -> Iterator[str]:
    """What to run so that no row of ours is empty."""
    here: dict[str, set[str]] = {}
    for one in conditions:
        # Of several versions each has a suffix.
        run = {name.split(" (")[0] for name in one.table.methods}
        here.setdefault(one.table.condition.track, set()).update(run)
    for track, found in here.items() or {PROBE: set[str]()}.items():
        if lacking := [name for name in paper.methods(track) if name not in found]:
            names = shlex.quote(",".join(lacking))
            yield (
                f"Rows without a score of ours were not run in the track `{track}`: "
                f"`{run_command(paper.name, folder)}` fills them, or the same study with "
                f"`--methods {names}`.\n"
            )


def _paper_grid(
    condition: PaperScores, shape: PaperTable, rows: Sequence[FilledRow]
) -> list[GridRow]:
    """The paper's table: ours over the suite and its groups, then its published columns."""
    wide = [scope for scope in condition.scopes if scope.level != "task"]
    both = {_plain(name) for name in shape.benchmarks}
    # A benchmark of the paper that the track `vlm` has as well stands beside its numbers.
    shared = [s for s in condition.scopes if s.level == "task" and _plain(s.name) in both]
    return [
        {"row": one.row.row, "ours": one.ours or f"({one.gap})"}
        | {scope.name: _score(one, scope) for scope in wide}
        | {f"{scope.name}, {_metric(condition, scope)}": _score(one, scope) for scope in shared}
        | {"gain on the suite": _gain(one, condition, shape.against)}
        | {f"published {name}": _published(one, name) for name in shape.benchmarks}
        for one in rows
    ]


def _task_grid(condition: PaperScores, rows: Sequence[FilledRow]) -> list[GridRow]:
    tasks = [scope for scope in condition.scopes if scope.level == "task"]
    return [
        {"row": one.row.row} | {scope.name: one.scores[scope].text for scope in tasks}
        for one in rows
        if one.scores
    ]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _metric(condition: PaperScores, scope: Scope) -> str:
    """The metric of our column, which need not be that of the published one beside it."""
    return condition.table.tasks[scope.tasks[0]].metric


def _score(one: FilledRow, scope: Scope) -> str:
    if one.scores:
        return one.scores[scope].text
    return one.gap if one.ours else "-"


def _gain(one: FilledRow, condition: PaperScores, against: str) -> str:
    found = one.gains.get(condition.scopes[0])
    if found is None and one.scores and one.ours != against:
        return absent(condition.table, against)
    return interval(found.estimate) if found else ""


def _published(one: FilledRow, benchmark: str) -> str:
    number = one.published.get(benchmark)
    return "" if number is None else number.value + ("" if number.first_hand else "†")


def _latex_paper(paper: Paper, shape: PaperTable, filled: Filled) -> Iterator[str]:
    for condition, rows in filled:
        title = f"{paper.title}: {shape.title}; {condition.table.condition.title}"
        label = f"{paper.name}-{shape.name}-{condition.table.condition.label}"
        note = "Published columns: another regime, not comparable; † read second-hand."
        yield latex_grid(_paper_grid(condition, shape, rows), f"{title}. {note}", label)


def _long_rows(
    condition: PaperScores, shape: PaperTable, rows: Sequence[FilledRow]
) -> Iterator[Row]:
    """One row for each row of the table and each column, published or ours."""
    for one in rows:
        start = _NOTHING | {"table": shape.name, "row": one.row.row, "method": one.ours}
        start["condition"] = condition.table.condition.title
        for name, number in one.published.items():
            columns = {"kind": "published", "column": name, "published": number.value}
            yield start | columns | {"evidence": number.evidence, "source": number.source}
        if not one.scores:
            yield start | {"kind": "ours", "why_not": one.gap}
        for scope, score in one.scores.items():
            found = one.gains.get(scope)
            yield start | {
                "kind": "ours",
                "column": scope.name,
                "mean": score.mean,
                "low": score.low,
                "high": score.high,
                "n_seeds": score.runs,
                **(_gain_columns(found.estimate) if found else {}),
                "against": shape.against if found else "",
                "why_not": "" if score.runs else score.why,
            }


def _gain_columns(gain: Estimate | None) -> Row:
    if gain is None:
        return {}
    low, high = gain.interval()
    return {"gain": float(gain.value), "gain_low": float(low), "gain_high": float(high)}


_NOTHING: Row = dict.fromkeys(
    (
        *("table", "row", "method", "condition", "kind", "column", "mean", "low", "high"),
        *("n_seeds", "gain", "gain_low", "gain_high", "against", "why_not"),
        *("published", "evidence", "source"),
    )
)
