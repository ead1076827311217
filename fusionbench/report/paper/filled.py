"""A table of a paper with our numbers: scores with intervals, gains against its baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

from fusionbench.records.pairs import Results
from fusionbench.records.scores import ScoreTable
from fusionbench.report.analysis.cells import cell_interval, suite_interval
from fusionbench.report.analysis.measure import Measured, Measurer, Scope
from fusionbench.report.paper.shapes import Line, Shape
from fusionbench.report.reported import Reported
from fusionbench.report.summary import Summary


@dataclass(frozen=True, kw_only=True)
class Filled:
    """One row: the paper's and ours."""

    line: Line
    published: Mapping[str, Reported]
    gap: str = ""
    """Why there are no scores of ours."""
    scores: Mapping[Scope, Summary]
    """The suite and its groups from chance (0) to perfect (1), a task in its own metric."""
    gains: Mapping[Scope, Measured]
    """Against the table's baseline; empty for the baseline itself."""


class Filler:
    """Fills tables from one condition."""

    def __init__(self, results: Results, table: ScoreTable) -> None:
        self.results = results
        self.table = table
        self.measurer = Measurer(results, table)

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The suite, its groups, its tasks."""
        return self.measurer.scopes

    def fill(self, shape: Shape) -> list[Filled]:
        """Every row of a table."""
        return [self._row(shape, line) for line in shape.rows]

    def _row(self, shape: Shape, line: Line) -> Filled:
        published = shape.published(line)
        if line.ours not in self.table.methods:
            gap = "not run" if line.ours else line.why or "not here"
            return Filled(line=line, published=published, gap=gap, scores={}, gains={})
        method = self.table.methods.index(line.ours)
        scores = {scope: self._score(method, scope) for scope in self.scopes}
        gains: Mapping[Scope, Measured] = {}
        if line.ours != shape.against and shape.against in self.table.methods:
            gains = self.measurer.against(method, self.table.methods.index(shape.against))
        return Filled(line=line, published=published, scores=scores, gains=gains)

    def _score(self, method: int, scope: Scope) -> Summary:
        if scope.level == "task":
            return cell_interval(self.results, self.table, method, scope.tasks[0])
        return suite_interval(self.results, self.table, method, scope)
