"""The parts of a report: each makes one page of text, one CSV and one LaTeX file from records.

A new part is a `Section` in `build.SECTIONS`; everything else (files, formats, `--table`) follows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusionbench.records.cost import CostRecord
from fusionbench.records.history import Run
from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis.analysis import Analysis
from fusionbench.report.tables import Row


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
