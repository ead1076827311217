"""The texts of the report: an honest header, the sections, and what they may not be read as."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fusionbench.records.cell import CellRecord
from fusionbench.records.cost import CostRecord
from fusionbench.records.history import Run
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report import coverage
from fusionbench.report.analysis import Analysis
from fusionbench.report.figures.style import Drawn
from fusionbench.report.tables import Row, markdown, score_rows, summary_rows
from fusionbench.stats.estimate import FEWEST_REPLICATES

# The parts of a report: each makes one page of text, one CSV and one LaTeX file from records.
#
# A new part is a `Section` in `build.SECTIONS`; everything else (files, formats, `--table`) follows.


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a section has to say, format by format; an empty one is not written."""

    markdown: str = ""
    rows: Sequence[Row] = ()
    """For the CSV; all with the same columns."""
    latex: str = ""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that a section may use: the records, read once, and their analysis."""

    results: Results
    planned: Run | None
    analyses: Sequence[Analysis]
    """One for each condition with tasks of the suite."""
    planted: Sequence[ScoreTable]
    """Tasks with a known truth; they enter no aggregate."""
    profiles: Sequence[CostRecord] = ()
    """Measured cost, from `DIR/profiles`."""
    problems: Sequence[str] = ()
    """Files that were ignored, without the folder's name."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """`tables/<name>.md`, `.csv`, `.tex`, and a part of report.md under `title`."""

    name: str
    title: str
    write: Callable[[Material], Page]


_READING = """\
Scores are percentages of the test examples: the mean over runs (seeds) ± half of the 95 % t
interval over runs. The interval says what other seeds would give on these test examples. It
compares no two methods{tests}. ± 0.0 says that all runs scored alike, not
that the score is certain. A single run has no interval; a cell without a run is named, never
counted as 0; a mean over tasks stands only where all of them ran."""
_UNTESTED = ", and no test is printed here"
_TESTED = """: that is done, pair by pair, under Contrasts. The table of scores
has wider intervals, for new runs and new images"""
_PLANTED = """\
Synthetic encoders with a known right answer: they test the suite itself and enter no mean."""
_FEW = "With {seeds} seeds per cell, differences of a few points are noise."
_ENOUGH = 6


def title(planned: Run | None, tables: Sequence[ScoreTable]) -> str:
    """The first lines: which study, what it is good for, how to read a number."""
    name = planned.study.get("name", "") if planned else ""
    note = planned.study.get("note", "") if planned else ""
    seeds = max((len(table.seeds) for table in tables), default=0)
    lines = [f"# FusionBench: {name or 'results'}", ""]
    lines += [f"> {note[0].upper()}{note[1:]}.", ""] if note else []
    tested = seeds >= FEWEST_REPLICATES
    lines += [_READING.format(tests=_TESTED if tested else _UNTESTED)]
    lines += [_FEW.format(seeds=seeds)] if 0 < seeds < _ENOUGH else []
    return "\n".join(lines) + "\n"


def main_section(table: ScoreTable) -> str:
    """Tables of one condition, one for each group of tasks so that they fit a page."""
    parts = [f"### {table.condition.title}", "", *same_function(table)]
    groups = sorted({task.group for task in table.tasks})
    for group in groups:
        keep = np.array([task.group == group for task in table.tasks], dtype=np.bool_)
        parts += [f"Tasks: {group or 'no group'}", "", markdown(score_rows(table.pick(keep)))]
    return "\n".join(parts)


def summary_section(table: ScoreTable) -> str:
    """Means over the suite and its groups."""
    return f"### {table.condition.title}\n\n{markdown(summary_rows(table))}"


def coverage_text(
    records: Sequence[CellRecord],
    planned: Run | None,
    problems: Sequence[str],
    more: Sequence[str] = (),
) -> str:
    """What ran, what did not and why, warnings of the training, and the records' origins."""
    parts = [markdown(coverage.status_rows(records, planned))]
    for heading, lines in (
        ("Skipped and failed", coverage.reasons(records)),
        ("Tasks left out", coverage.left_out(planned)),
        ("Worth knowing", [*coverage.warnings(records), *more]),
        ("Files that were ignored", [f"- {problem}" for problem in problems]),
        ("Origins", coverage.origins(records)),
    ):
        if lines:
            parts.append(f"### {heading}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def joined(header: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page: the header and each section that has something to say."""
    parts = [header]
    for heading, text in sections:
        if text:
            note = f"{_PLANTED}\n\n" if heading == "Planted ground truth" else ""
            parts.append(f"## {heading}\n\n{note}{text.rstrip()}\n")
    return "\n".join(parts)


def figure_section(figures: Sequence[Drawn]) -> str:
    """Every figure with the sentence that says how to read it."""
    several = len({figure.condition for figure in figures}) > 1
    parts = []
    for figure in figures:
        heading = f"{figure.title}: {figure.condition}" if several else figure.title
        link = f"![{heading}](figures/{figure.svg.name})"
        parts.append(f"### {heading}\n\n{link}\n\n{figure.reading}\n")
    return "\n".join(parts)


def same_function(table: ScoreTable) -> Iterator[str]:
    """A sentence for each method that scored as another on every example."""
    for row, other in sorted(table.twins.items()):
        cells = sum(record.status == "done" for record in table.row(row))
        yield (
            f"`{table.methods[row]}` scored as `{table.methods[other]}` on every single example of "
            f"all {cells} cells: the two are the same function here.\n"
        )
