"""`tables/summary.csv`: one row for each method and aggregate, with everything tested on it.

`mean` is the plain mean over tasks, as in the Markdown table and on the terminal; `score` counts
every task from chance (0) to perfect (1), and differences and tests are about it.
"""

from collections.abc import Iterator

from fusionbench.report.analysis.analysis import Analysis
from fusionbench.report.contrast_columns import measured_columns
from fusionbench.report.numbers import digits
from fusionbench.report.tables import Row, summary_long_rows


def suite_rows(analysis: Analysis) -> Iterator[Row]:
    """The rows of `summary_long_rows`, each with its chance-corrected score and difference."""
    known = analysis.against_baseline()
    scopes = {scope.name: scope for scope in analysis.aggregates}
    table = analysis.table
    plain = summary_long_rows(table)
    for index, row in enumerate(plain):
        method, scope = index // len(scopes), scopes[row["aggregate"]]
        found, column = analysis.suite[method, scope], analysis.columns[scope]
        yield (
            row
            | {
                "track": table.condition.track,
                "score": digits(found.mean),
                "score_low": digits(found.low),
                "score_high": digits(found.high),
            }
            | measured_columns(known.get((table.methods[method], scope)))
            | {
                "best": str(method in column.best).lower() if column.tied else "",
                "tied": str(method in column.tied).lower() if column.tied else "",
            }
        )
