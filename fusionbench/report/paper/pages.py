"""A paper's page: what differs, its tables in Markdown and LaTeX, all numbers as CSV."""

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusionbench.api.errors import disk_error
from fusionbench.records.files import write_atomic
from fusionbench.records.pairs import Results
from fusionbench.report.analysis.measure import Scope
from fusionbench.report.grid import GridRow, latex_grid, markdown_grid
from fusionbench.report.numbers import digits, interval
from fusionbench.report.paper.filled import Filled, Filler
from fusionbench.report.paper.shapes import Paper, Shape
from fusionbench.report.tables import Row, comma_separated

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
        contents[f"{stem}.tex"] = "\n".join(_latex(paper, shape, fillers, filled[shape]))
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


def _latex(
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
