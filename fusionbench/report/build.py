"""Records in, tables, figures and one page out; the same bytes for the same records."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionbench.api.errors import Problem, UserError, disk_error, unknown
from fusionbench.records.cost import read as read_profiles
from fusionbench.records.files import write_atomic
from fusionbench.records.pairs import Results
from fusionbench.records.store import Store
from fusionbench.report.analysis.analysis import analyse_all
from fusionbench.report.coverage import reasons
from fusionbench.report.figures.write import write_figures
from fusionbench.report.freshness import fingerprint, mark
from fusionbench.report.garbage import kept, released
from fusionbench.report.html.write import write_html
from fusionbench.report.page import figure_section, joined, title
from fusionbench.report.parts import SECTIONS
from fusionbench.report.sections import Material, Page
from fusionbench.report.tables import comma_separated

FORMATS = ("md", "tex", "csv", "html")
Cells = Mapping[str, Path]
"""What `Store.finished` found."""


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where the parts of a report lie."""

    page: Path
    tables: Path
    figures: Path
    written: tuple[Path, ...] = ()
    """The files of tables, in order."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to write; by default everything."""

    formats: Collection[str] = FORMATS
    table: str = ""
    """One table only."""
    baseline: str | None = None
    """Compare with this method instead of the study's baseline."""

    @property
    def everything(self) -> bool:
        """Whether this is the whole report as it stands beside its records."""
        return set(self.formats) == set(FORMATS) and not self.table and self.baseline is None


def write_report(
    folder: str | Path,
    out: str | Path | None = None,
    wanted: Wanted | None = None,
    *,
    hear: Callable[[Sequence[Problem]], None] | None = None,
) -> ReportPaths:
    """Write the report of a folder of results, by default into its `report/`.

    `hear` gets the records that are passed over before anything else can go wrong. Raises UserError
    if the folder holds no record, for an unknown table, format or baseline, and if `out` cannot be
    written.
    """
    wanted = wanted or Wanted()
    _check(wanted)
    store = Store.open(folder)
    home = Path(out) if out is not None else Path(folder) / "report"
    finished = store.finished()
    if hear is not None:
        hear(store.problems)
    inputs = fingerprint(store, finished) if wanted.everything else ""
    try:
        with released():
            paths = _write(store, finished, home, wanted)
        if inputs:
            mark(home, inputs)
    except OSError as error:
        raise disk_error(error, home) from error
    return paths


def collect(store: Store, baseline: str | None = None, finished: Cells | None = None) -> Material:
    """Read a folder and analyse it. Raises UserError if it holds no record."""
    results = Results(store, finished)
    if not results.records:
        raise UserError(f"{store.folder} holds no records", "run a study into it first")
    problems: list[Problem] = []
    profiles = tuple(read_profiles(store.folder, problems))
    runs = store.history.runs()
    suite = [table.pick(table.suite) for table in results.tables if table.suite.any()]
    return Material(
        results=results,
        planned=runs[-1] if runs else None,
        analyses=analyse_all(results, suite, runs, baseline),
        planted=[table.pick(~table.suite) for table in results.tables if not table.suite.all()],
        profiles=profiles,
        problems=[_relative(str(one), store.folder) for one in (*store.problems, *problems)],
    )


def _check(wanted: Wanted) -> None:
    names = [section.name for section in SECTIONS]
    if wanted.table and wanted.table not in names:
        raise unknown("table", wanted.table, names)
    for name in wanted.formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)


def _write(store: Store, finished: Cells, home: Path, wanted: Wanted) -> ReportPaths:
    with kept():
        material = collect(store, wanted.baseline, finished)
    tables, figures = home / "tables", home / "figures"
    chosen = [one for one in SECTIONS if wanted.table in ("", one.name)]
    pages = {section.name: section.write(material) for section in chosen}
    written = [
        file for name, page in pages.items() for file in _files(tables / name, page, wanted.formats)
    ]
    if not wanted.table:
        lines = reasons(material.results.records)
        _text(tables / "gaps.md", "".join(f"{line}\n" for line in lines))
        _pages(material, pages, home, wanted.formats)
    return ReportPaths(
        page=home / "report.md", tables=tables, figures=figures, written=tuple(written)
    )


def _files(stem: Path, page: Page, formats: Collection[str]) -> Iterator[Path]:
    """Write the formats of one table; one that has nothing to show has no file."""
    contents = {"md": page.markdown, "csv": comma_separated(page.rows), "tex": page.latex}
    for ending, text in contents.items():
        file = stem.with_suffix(f".{ending}")
        if ending in formats and text:
            _text(file, text)
            yield file
        elif ending in formats:
            # What an earlier report had to say and this one has not.
            file.unlink(missing_ok=True)


def _pages(
    material: Material, pages: Mapping[str, Page], home: Path, formats: Collection[str]
) -> None:
    """The figures, and the pages that show them."""
    figures = write_figures(material, home / "figures") if {"md", "html"} & set(formats) else []
    if "md" in formats:
        sections = [(section.title, pages[section.name].markdown) for section in SECTIONS]
        header = title(material.planned, material.results.tables)
        _text(home / "report.md", joined(header, [*sections, ("Figures", figure_section(figures))]))
    if "html" in formats:
        rows = {section.name: pages[section.name].rows for section in SECTIONS}
        write_html(home / "report.html", material, rows, figures)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def _relative(text: str, folder: Path) -> str:
    """A report names no folder of the machine that made it."""
    return text.replace(f"{folder}/", "")
