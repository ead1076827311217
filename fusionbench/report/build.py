"""Records in, tables, figures and one page out; the same bytes for the same records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionbench.cache import write_atomic
from fusionbench.errors import UserError, disk_error
from fusionbench.report.coverage import reasons
from fusionbench.report.figures.write import write_figures
from fusionbench.report.freshness import mark
from fusionbench.report.html.write import write_html
from fusionbench.report.page import (
    coverage_page,
    figure_section,
    joined,
    main_section,
    parameter_section,
    summary_section,
    title,
)
from fusionbench.report.tables import Row, comma_separated, long_rows, summary_long_rows
from fusionbench.scores import ScoreTable, score_tables
from fusionbench.store import Store


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where the parts of a report lie."""

    page: Path
    tables: Path
    figures: Path


def write_report(folder: str | Path, out: str | Path | None = None) -> ReportPaths:
    """Write the report of a folder of results, by default into its `report/`.

    Raises UserError if the folder holds no record, or if `out` cannot be written.
    """
    store = Store.open(folder)
    home = Path(out) if out is not None else Path(folder) / "report"
    paths = ReportPaths(page=home / "report.md", tables=home / "tables", figures=home / "figures")
    try:
        _write(store, paths)
        mark(store, home)
    except OSError as error:
        raise disk_error(error, home) from error
    return paths


def _write(store: Store, paths: ReportPaths) -> None:
    records = [*store.records(), *store.failures()]
    if not records:
        raise UserError(f"{store.folder} holds no records", "run a study into it first")
    problems = [_relative(str(problem), store.folder) for problem in store.problems]
    planned = next(reversed(store.history.runs()), None)
    tables = score_tables(records)
    suite = [table.pick(table.suite) for table in tables if table.suite.any()]
    planted = [table.pick(~table.suite) for table in tables if not table.suite.all()]
    sections = {
        "Summary": _sections(suite, summary_section),
        "Scores": _sections(suite, main_section),
        "Planted ground truth": _sections(planted, main_section),
        "Trainable parameters": _sections(suite, parameter_section),
        "What ran": coverage_page(records, planned, problems),
    }
    files = ("summary", "main", "planted", "parameters", "coverage")
    for name, text in zip(files, sections.values(), strict=True):
        _text(paths.tables / f"{name}.md", text)
    _text(paths.tables / "gaps.md", "".join(f"{line}\n" for line in reasons(records)))
    _text(paths.tables / "summary.csv", comma_separated(_all(suite, summary_long_rows)))
    _text(paths.tables / "main.csv", comma_separated(_all(suite, long_rows)))
    _text(paths.tables / "planted.csv", comma_separated(_all(planted, long_rows)))
    figures = write_figures(store, tables, paths.figures)
    sections["Figures"] = figure_section(figures)
    text = joined(title(planned, tables), list(sections.items()))
    _text(paths.page, text)
    write_html(paths.page.with_suffix(".html"), paths.tables, figures, records, planned)


def _sections(tables: Sequence[ScoreTable], section: Callable[[ScoreTable], str]) -> str:
    return "\n".join(section(table) for table in tables)


def _all(tables: Sequence[ScoreTable], rows: Callable[[ScoreTable], list[Row]]) -> list[Row]:
    return [row for table in tables for row in rows(table)]


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def _relative(text: str, folder: Path) -> str:
    """A report names no folder of the machine that made it."""
    return text.replace(f"{folder}/", "")
