"""The parts of report.md: header, sections and figures, and what each section is made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusionbench.records.cost import CostRecord
from fusionbench.records.history import Request
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.records.text import one_line
from fusionbench.report.analysis import Analysis
from fusionbench.report.figures.style import Drawn
from fusionbench.report.tables import Row
from fusionbench.stats.estimate import FEWEST_REPLICATES

# A new section is an entry of `build.SECTIONS`; files, formats and `--table` follow from it.


@dataclass(frozen=True, kw_only=True)
class Page:
    """A section in its formats; an empty format is not written."""

    markdown: str = ""
    rows: Sequence[Row] = ()
    """For CSV, HTML and figures; typed values, all rows with the same columns."""
    latex: str = ""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What sections are made from: the records, read once, and their analysis."""

    results: Results
    planned: Request | None
    analyses: Sequence[Analysis]
    """One for each condition with tasks of the suite."""
    planted: Sequence[ScoreTable]
    """Tasks with a known truth; they enter no aggregate."""
    imported: Sequence[ScoreTable] = ()
    """Cells that other tools scored; they enter no aggregate either."""
    profiles: Sequence[CostRecord] = ()
    """Measured cost, from `DIR/profiles`."""
    problems: Sequence[str] = ()
    """Files that were ignored, relative to the folder."""


@dataclass(frozen=True)
class ReportSection:
    """`tables/<name>.csv`, `.tex`, and a part of report.md under `title`."""

    name: str
    title: str
    write: Callable[[Material], Page]
    printed: bool = False
    """Whether commands print it: its Markdown is kept in `tables/<name>.md`, too."""


_READING = """\
Scores are percentages of the test examples: the mean over runs (seeds) ± half of the 95 % t
interval over runs. The interval says what other seeds would give on these test examples. It
compares no two methods{tests}. ± 0.0 means equal scores in all runs, not
a certain score. A single run has no interval. A cell without runs shows the reason and does not
count as 0. A mean over tasks needs runs on all of them."""
_UNASKED = """\
**No request is on record** (study.json is missing or damaged): which cells were not run, and which
comparisons were planned, is not known."""
_UNTESTED = ", and no test is printed here"
_TESTED = """: for that, see the paired tests under Contrasts. The table of scores
has wider intervals, for new runs and new images"""
_PLANTED = """\
Synthetic encoders with a known right answer: they test the suite itself and enter no mean."""
_FEW = "With {seeds} seeds per cell, differences of a few points are noise."
_ENOUGH = 6


def title(planned: Request | None, tables: Sequence[ScoreTable]) -> str:
    """The header: the study's name and note, and how to read a number."""
    name, note = (
        one_line(str(planned.study.get(key, ""))) if planned else "" for key in ("name", "note")
    )
    seeds = max((len(table.seeds) for table in tables), default=0)
    lines = [f"# FusionBench: {name or 'results'}", ""]
    lines += [_UNASKED, ""] if planned is None else []
    lines += [f"> {note[0].upper()}{note[1:].rstrip('.')}.", ""] if note else []
    tested = seeds >= FEWEST_REPLICATES
    lines += [_READING.format(tests=_TESTED if tested else _UNTESTED)]
    lines += [_FEW.format(seeds=seeds)] if 0 < seeds < _ENOUGH else []
    return "\n".join(lines) + "\n"


def joined(header: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page: the header and each section with text."""
    parts = [header]
    for heading, text in sections:
        if text:
            note = f"{_PLANTED}\n\n" if heading == "Planted ground truth" else ""
            parts.append(f"## {heading}\n\n{note}{text.rstrip()}\n")
    return "\n".join(parts)


def figure_section(figures: Sequence[Drawn]) -> str:
    """Every figure with its caption."""
    several = len({figure.condition for figure in figures}) > 1
    parts = []
    for figure in figures:
        heading = f"{figure.title}: {figure.condition}" if several else figure.title
        link = f"![{heading}](figures/{figure.svg.name})"
        parts.append(f"### {heading}\n\n{link}\n\n{figure.reading}\n")
    return "\n".join(parts)
