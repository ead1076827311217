"""The sections that every report has, from the simplest to the verdicts."""

from collections.abc import Iterator, Sequence

from fusionbench.report import coverage
from fusionbench.report.ablation import ablation_page
from fusionbench.report.analysis.analysis import Analysis
from fusionbench.report.contrast_table import contrast_page
from fusionbench.report.cost_table import cost_page
from fusionbench.report.grid import latex_grid
from fusionbench.report.layer_table import layer_page
from fusionbench.report.main_table import main_page
from fusionbench.report.page import coverage_text, main_section, summary_section
from fusionbench.report.reported import reported_page
from fusionbench.report.sections import Material, Page, Section
from fusionbench.report.suite_table import suite_rows
from fusionbench.report.tables import long_rows, summary_rows


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
    return ablation_page(material.results.store)


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
