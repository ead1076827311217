"""`tables/imported`: numbers of other tools, beside ours and in no mean or test."""

from collections.abc import Iterator, Sequence

from fusionbench.records.cell import CellRecord
from fusionbench.records.scores import ScoreTable
from fusionbench.report.page import Page
from fusionbench.report.tables import GridRow, Row, conditions, latex_grid, markdown

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
