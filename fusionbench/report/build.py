"""Records in, tables, figures and one page out; the same bytes for the same records."""

import gc
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusionbench import __version__
from fusionbench.api.errors import Problem, UserError, disk_error, unknown
from fusionbench.records.archive import FAILURES
from fusionbench.records.cost import profile_files
from fusionbench.records.cost import read as read_profiles
from fusionbench.records.files import write_atomic
from fusionbench.records.history import ABLATIONS
from fusionbench.records.pairs import Results
from fusionbench.records.store import Store
from fusionbench.report import coverage
from fusionbench.report.ablation import ablation_page
from fusionbench.report.analysis import Analysis, analyse_all
from fusionbench.report.contrast_table import contrast_page
from fusionbench.report.cost_table import cost_page
from fusionbench.report.coverage import reasons
from fusionbench.report.figures.write import write_figures
from fusionbench.report.html.page import write_html
from fusionbench.report.layer_table import layer_page
from fusionbench.report.main_table import main_page, suite_rows
from fusionbench.report.page import (
    Material,
    Page,
    Section,
    coverage_text,
    figure_section,
    joined,
    main_section,
    summary_section,
    title,
)
from fusionbench.report.published import reported_page
from fusionbench.report.tables import comma_separated, latex_grid, long_rows, summary_rows

# No search for garbage among records: there may be 100,000, and all of them stay.


@contextmanager
def kept() -> Iterator[None]:
    """What is made inside is no candidate for the collector until `released`.

    A full pass looks at every record that was read, a second for 100,000 of them; reading sets
    many off, and drawing a figure another. Reference counts free what is in no cycle, as ever.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


@contextmanager
def released() -> Iterator[None]:
    """At the end, what was kept inside is a candidate again."""
    before = gc.get_freeze_count()
    try:
        yield
    finally:
        # What somebody else froze before stays frozen.
        if not before:
            gc.unfreeze()


# The sections that every report has, from the simplest to the verdicts.


def _summary(material: Material) -> Page:
    tables = [analysis.table for analysis in material.analyses]
    return Page(
        markdown="\n".join(summary_section(table) for table in tables),
        rows=[row for analysis in material.analyses for row in suite_rows(analysis)],
        latex="\n".join(
            latex_grid(summary_rows(table), f"Means over tasks; {table.condition.title}",
                       f"summary-{table.condition.encoder}")
            for table in tables
        ),
    )  # fmt: skip


def _main(material: Material) -> Page:
    return main_page(material.analyses)


def _contrasts(material: Material) -> Page:
    return contrast_page(material.analyses)


def _planted(material: Material) -> Page:
    return Page(
        markdown="\n".join(main_section(table) for table in material.planted),
        rows=[row for table in material.planted for row in long_rows(table)],
    )


def _cost(material: Material) -> Page:
    return cost_page(material.analyses, material.profiles)


def _layers(material: Material) -> Page:
    return layer_page(material.analyses)


def _reported(material: Material) -> Page:
    return reported_page([analysis.table for analysis in material.analyses])


def _coverage(material: Material) -> Page:
    records, planned = material.results.records, material.planned
    tables = material.results.tables
    rows = [row for table in tables for row in coverage.coverage_rows(table, planned)]
    more = [line for one in material.analyses for line in _outlying(one)]
    return Page(
        markdown=coverage_text(records, planned, material.problems, more),
        rows=rows,
        latex=latex_grid(coverage.status_rows(records, planned), "What ran", "coverage"),
    )


def _ablation(material: Material) -> Page:
    return ablation_page(material.results)


def _outlying(analysis: Analysis) -> Iterator[str]:
    """A run that stands out bends every mean; its cell is shown run by run."""
    table = analysis.table
    for (method, task), seeds in analysis.outlying.items():
        scores = ", ".join(f"{100 * value:.1f}" for value in table.values[method, task])
        which = ", ".join(map(str, seeds))
        yield (
            f"- {table.methods[method]} on {table.tasks[task].name}: seed {which} lies more than "
            f"5 MAD from the median; all runs: {scores}"
        )


SECTIONS: Sequence[Section] = (
    Section(name="summary", title="Summary", write=_summary),
    Section(name="contrasts", title="Contrasts", write=_contrasts),
    Section(name="main", title="Scores", write=_main),
    Section(name="planted", title="Planted ground truth", write=_planted),
    Section(name="cost", title="Cost", write=_cost),
    Section(name="ablation", title="Ablations", write=_ablation),
    Section(name="layers", title="Layers", write=_layers),
    Section(name="reported", title="Published numbers", write=_reported),
    Section(name="coverage", title="What ran", write=_coverage),
)
"""In the order of the page; an empty one is left out."""


# Whether a report shows what its folder holds, told from names alone: records never change.


_NOTE = ".inputs"


def up_to_date(store: Store, home: Path, finished: "Cells | None" = None) -> bool:
    """Whether the report in `home` was made from exactly these records."""
    note = home / _NOTE
    if not note.exists():
        return False
    cells = store.finished() if finished is None else finished
    return note.read_text(encoding="utf-8") == fingerprint(store, cells)


def mark(home: Path, inputs: str) -> None:
    """Note the fingerprint of what the report was made from.

    It is taken before anything is read, so that a record which appears meanwhile is not passed
    over, and written last, so that a torn report is made again.
    """
    write_atomic(home / _NOTE, inputs.encode())


def fingerprint(store: Store, finished: Iterable[str]) -> str:
    """Hash over everything that a report shows; `finished` are the ids of the store's cells."""
    failures = [path.name for path in (store.folder / "failures").glob("*.json")]
    names = sorted([*finished, *failures])
    others = [store.history.file, store.folder / ABLATIONS, store.folder / FAILURES]
    others += profile_files(store.folder)
    beside = b"".join(file.read_bytes() for file in others if file.exists())
    problems = [str(problem) for problem in store.problems]
    text = "\n".join([__version__, *names, *problems])
    return hashlib.sha256(text.encode() + beside).hexdigest()


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
class ReportOptions:
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
    wanted: ReportOptions | None = None,
    *,
    hear: Callable[[Sequence[Problem]], None] | None = None,
) -> ReportPaths:
    """Write the report of a folder of results, by default into its `report/`.

    `hear` gets the records that are passed over before anything else can go wrong. Raises UserError
    if the folder holds no record, for an unknown table, format or baseline, and if `out` cannot be
    written.
    """
    wanted = wanted or ReportOptions()
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


def _check(wanted: ReportOptions) -> None:
    names = [section.name for section in SECTIONS]
    if wanted.table and wanted.table not in names:
        raise unknown("table", wanted.table, names)
    for name in wanted.formats:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)


def _write(store: Store, finished: Cells, home: Path, wanted: ReportOptions) -> ReportPaths:
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
