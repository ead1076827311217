"""The forms of a benchmark that are tables: VLMEvalKit's TSV and sets of the hub."""

from collections.abc import Iterator, Mapping

from fusionbench.api import Source
from fusionbench.tasks._hub import hub_rows
from fusionbench.tasks._rows import Row
from fusionbench.tasks._tsv import tsv_rows


def table_rows(source: Source, hub: Mapping[str, str]) -> Iterator[Row]:
    """Rows of a source that is a table."""
    return tsv_rows(source.root) if source.form == "tsv" else hub_rows(source, hub)
