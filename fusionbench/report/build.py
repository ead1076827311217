"""Records in, tables, figures and one page out; the same bytes for the same records."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionbench.cache import write_atomic
from fusionbench.costs.records import read as read_profiles
from fusionbench.errors import Problem, UserError, disk_error, unknown
from fusionbench.paired.results import Results
from fusionbench.report.analysis import analyse
from fusionbench.report.coverage import reasons
from fusionbench.report.freshness import mark
from fusionbench.report.page import figure_link, joined, title
from fusionbench.report.parts import SECTIONS
from fusionbench.report.plots import plot_scores
from fusionbench.report.sections import Material, Page
from fusionbench.report.tables import comma_separated
from fusionbench.scores import ScoreTable
from fusionbench.store import Store

FORMATS = ("md", "tex", "csv", "html")

EXTRAS: Mapping[str, Callable[[Material, Path], None]] = {}
"""Formats that are made from all sections at once (`html`): called with the report's folder."""


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
    folder: str | Path, out: str | Path | None = None, wanted: Wanted | None = None
) -> ReportPaths:
    """Write the report of a folder of results, by default into its `report/`.

    Raises UserError if the folder holds no record, for an unknown table, format or baseline, and
    if `out` cannot be written.
    """
    wanted = wanted or Wanted()
    _check(wanted)
    store = Store.open(folder)
    home = Path(out) if out is not None else Path(folder) / "report"
    try:
        paths = _write(store, home, wanted)
        if wanted.everything:
            mark(store, home)
    except OSError as error:
        raise disk_error(error, home) from error
    return paths


def collect(store: Store, baseline: str | None = None) -> Material:
    """Read a folder and analyse it. Raises UserError if it holds no record."""
    results = Results(store)
    if not results.records:
        raise UserError(f"{store.folder} holds no records", "run a study into it first")
    problems: list[Problem] = []
    profiles = tuple(read_profiles(store.folder, problems))
    runs = store.history.runs()
    suite = [table.pick(table.suite) for table in results.tables if table.suite.any()]
    return Material(
        results=results,
        planned=runs[-1] if runs else None,
        analyses=tuple(analyse(results, table, runs, baseline) for table in suite),
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


def _write(store: Store, home: Path, wanted: Wanted) -> ReportPaths:
    material = collect(store, wanted.baseline)
    tables, figures = home / "tables", home / "figures"
    chosen = [one for one in SECTIONS if wanted.table in ("", one.name)]
    pages = {section.name: section.write(material) for section in chosen}
    written = [
        file for name, page in pages.items() for file in _files(tables / name, page, wanted.formats)
    ]
    if not wanted.table:
        lines = reasons(material.results.records)
        _text(tables / "gaps.md", "".join(f"{line}\n" for line in lines))
        if "md" in wanted.formats:
            _page(material, pages, home)
        for name in sorted(set(EXTRAS) & set(wanted.formats)):
            EXTRAS[name](material, home)
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


def _page(material: Material, pages: Mapping[str, Page], home: Path) -> None:
    suite = [analysis.table for analysis in material.analyses]
    drawn = {"main": (suite, "scores"), "planted": (material.planted, "planted")}
    sections = []
    for section in SECTIONS:
        text = pages[section.name].markdown
        if section.name in drawn:
            tables, name = drawn[section.name]
            text = "\n".join([*_figures(tables, home / "figures", name), text])
        sections.append((section.title, text))
    _text(home / "report.md", joined(title(material.planned, material.results.tables), sections))


def _figures(tables: Sequence[ScoreTable], folder: Path, name: str) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(tables, start=1):
        stem = folder / (name if number == 1 else f"{name}-{number}")
        plot_scores(table, stem)
        yield figure_link(f"figures/{stem.name}.svg", f"scores: {table.condition.title}")


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def _relative(text: str, folder: Path) -> str:
    """A report names no folder of the machine that made it."""
    return text.replace(f"{folder}/", "")
