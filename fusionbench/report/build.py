"""Records in, tables, figures and one page out; the same bytes for the same records."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionbench.api.errors import Problem, UserError, disk_error, unknown
from fusionbench.records.cost import read as read_profiles
from fusionbench.records.files import write_atomic
from fusionbench.records.pairs import Results
from fusionbench.records.states import fingerprint, mark
from fusionbench.records.store import Store
from fusionbench.records.text import markdown_page
from fusionbench.report.ablation import ablation_page
from fusionbench.report.analysis import Analysis, analyse_all
from fusionbench.report.answer import answer_page
from fusionbench.report.contrast_table import contrast_page
from fusionbench.report.cost_table import cost_page
from fusionbench.report.coverage import coverage_page, reasons
from fusionbench.report.figures.write import write_figures
from fusionbench.report.html.page import write_html
from fusionbench.report.layer_table import layer_page, reference_page
from fusionbench.report.leaderboard import leaderboard_page
from fusionbench.report.main_table import main_page, planted_page
from fusionbench.report.models import models_page
from fusionbench.report.page import Material, Page, ReportSection, figure_section, joined, title
from fusionbench.report.published import imported_page, reported_page
from fusionbench.report.tables import comma_separated

SECTIONS: Sequence[ReportSection] = (
    ReportSection("answer", "Answer", answer_page, printed=True),
    ReportSection(
        "summary", "Leaderboard", lambda report: leaderboard_page(report.analyses), printed=True
    ),
    ReportSection("contrasts", "Contrasts", lambda report: contrast_page(report.analyses)),
    ReportSection("main", "Scores", lambda report: main_page(report.analyses)),
    ReportSection(
        "references",
        "What single layers hold",
        lambda report: reference_page([analysis.table for analysis in report.analyses]),
    ),
    ReportSection("models", "Inside a language model", models_page),
    ReportSection("planted", "Planted ground truth", lambda report: planted_page(report.planted)),
    ReportSection(
        "imported", "Scored by other tools", lambda report: imported_page(report.imported)
    ),
    ReportSection("cost", "Cost", lambda report: cost_page(report.analyses, report.profiles)),
    ReportSection(
        "ablation", "Ablations", lambda report: ablation_page(report.results), printed=True
    ),
    ReportSection("layers", "Layers", lambda report: layer_page(report.analyses)),
    ReportSection(
        "reported",
        "Published numbers",
        lambda report: reported_page([analysis.table for analysis in report.analyses]),
    ),
    ReportSection("coverage", "What ran", coverage_page),
)
"""In the order of the page; an empty one is left out."""

FORMATS = ("md", "tex", "csv", "html")
Cells = Mapping[str, Path]
"""What `Store.finished` found."""


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Files and folders of a report."""

    page: Path
    tables: Path
    figures: Path
    written: tuple[Path, ...] = ()
    """The files of tables, in order."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to write; by default everything."""

    formats: Collection[str] = FORMATS
    table: str = ""
    """One table only."""
    baseline: str | None = None
    """Compare with this method instead of the study's baseline."""

    @property
    def everything(self) -> bool:
        """Whether every part is written, with the study's own baseline."""
        return set(self.formats) == set(FORMATS) and not self.table and self.baseline is None


def write_report(
    folder: str | Path | Store,
    out: str | Path | None = None,
    wanted: ReportOptions | None = None,
    *,
    hear: Callable[[Sequence[Problem]], None] | None = None,
    finished: Cells | None = None,
) -> ReportPaths:
    """Write the report of a folder of results, by default into its `report/`.

    `finished`: what the store's scan found, if it was scanned before. `hear` is called first, with
    the problems of files that are ignored. Raises UserError if the folder holds no record, for an
    unknown table, format or baseline, and if `out` cannot be written.
    """
    wanted = wanted or ReportOptions()
    _check(wanted)
    store = folder if isinstance(folder, Store) else Store.open(folder)
    home = Path(out) if out is not None else store.folder / "report"
    finished = store.finished(reread=True) if finished is None else finished
    known = len(store.problems)
    if hear is not None:
        hear(store.problems)
    inputs = fingerprint(store, finished) if wanted.everything else ""
    try:
        paths = _write(store, finished, home, wanted)
        if inputs:
            mark(home, inputs)
    except OSError as error:
        raise disk_error(error, home) from error
    finally:
        # Failures that cannot be read are found when they are read.
        if hear is not None:
            hear(store.problems[known:])
    return paths


def collect(store: Store, baseline: str | None = None, finished: Cells | None = None) -> Material:
    """Read a folder and analyse it. Raises UserError if it holds no record."""
    results = Results(store, finished)
    if not results.records:
        raise UserError(f"{store.folder} holds no records", "run a study into it first")
    ours = [table for table in results.tables if not table.condition.source]
    problems: list[Problem] = []
    profiles = tuple(read_profiles(store.folder, problems))
    return Material(
        results=results,
        planned=results.planned,
        analyses=analyses_of(results, baseline),
        planted=[table.pick(table.planted) for table in ours if table.planted.any()],
        imported=[table for table in results.tables if table.condition.source],
        profiles=profiles,
        problems=[_relative(str(one), store.folder) for one in (*store.problems, *problems)],
    )


def analyses_of(results: Results, baseline: str | None = None) -> tuple[Analysis, ...]:
    """The analysis of each condition with tasks of the suite."""
    suite = [table.pick(~table.planted) for table in results.tables if not table.planted.all()]
    return analyse_all(results, suite, results.store.history.requests(), baseline)


def _check(wanted: ReportOptions) -> None:
    names = [section.name for section in SECTIONS]
    if wanted.table and wanted.table not in names:
        raise unknown("table", wanted.table, names)
    for name in wanted.formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)


def _write(store: Store, finished: Cells, home: Path, wanted: ReportOptions) -> ReportPaths:
    report = collect(store, wanted.baseline, finished)
    tables, figures = home / "tables", home / "figures"
    chosen = [one for one in SECTIONS if wanted.table in ("", one.name)]
    pages = {section.name: section.write(report) for section in chosen}
    written = [
        file
        for section in chosen
        for file in _files(tables / section.name, pages[section.name], wanted, section.printed)
    ]
    if not wanted.table:
        lines = reasons(report.results.records)
        _text(tables / "gaps.md", "".join(f"{line}\n" for line in lines))
        _pages(report, pages, home, wanted.formats)
    return ReportPaths(
        page=home / "report.md", tables=tables, figures=figures, written=tuple(written)
    )


def _files(stem: Path, page: Page, wanted: ReportOptions, printed: bool) -> Iterator[Path]:
    """Write the formats of one table; one that has nothing to show has no file.

    In Markdown only if commands print it or it is asked for alone: report.md has all of them.
    """
    markdown = page.markdown if wanted.table or printed else ""
    contents = {"md": markdown, "csv": comma_separated(page.rows), "tex": page.latex}
    for ending, text in contents.items():
        file = stem.with_suffix(f".{ending}")
        if ending in wanted.formats and text:
            _text(file, text)
            yield file
        elif ending in wanted.formats:
            # An earlier report may have written it.
            file.unlink(missing_ok=True)


def _pages(
    report: Material, pages: Mapping[str, Page], home: Path, formats: Collection[str]
) -> None:
    """The figures, and the pages that show them."""
    figures = write_figures(report, home / "figures") if {"md", "html"} & set(formats) else []
    if "md" in formats:
        sections = [(section.title, pages[section.name].markdown) for section in SECTIONS]
        header = title(report.planned, report.results.tables)
        _text(home / "report.md", joined(header, [*sections, ("Figures", figure_section(figures))]))
    if "html" in formats:
        rows = {section.name: pages[section.name].rows for section in SECTIONS}
        write_html(home / "report.html", report, rows, figures)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (markdown_page(text) if path.suffix == ".md" else text).encode())


def _relative(text: str, folder: Path) -> str:
    """A report names no folder of the machine that made it."""
    return text.replace(f"{folder}/", "")
