"""Several conditions in one folder are told apart by exactly what differs, in every output."""

import csv
from dataclasses import replace

import pytest
from toy_records import put, spec
from toy_suite import quick_disk

from fusionbench.records.history import Request
from fusionbench.records.scores import score_tables
from fusionbench.records.store import Store
from fusionbench.report.build import ReportOptions, write_report

pytestmark = pytest.mark.usefixtures("no_figures")

BUDGET = spec().budget
CHANGES = {
    "weight_decay": 0.5, "warmup": 0.25, "clip": 2.0, "feature_dtype": "float16", "test_items": 20,
    "resample": "none", "query_dim": 32, "reader_width": 32,
}  # fmt: skip


def folder_with(home, *changes):
    with quick_disk(), Store.create(home) as store:
        for number, change in enumerate(changes):
            for method in ("last", "penultimate"):
                for seed in range(2):
                    one = spec(method, "digits", seed, **change)
                    put(store, one, 0.3 + 0.3 * number, 10 * number + seed)
        study = {"name": "toy", "baseline": "penultimate", "seeds": 2}
        labels = ("last", "penultimate")
        store.history.add(Request(study=study, labels=labels, tasks=("digits",)))
    return home


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def titles(home, change):
    tables = score_tables(Store.open(folder_with(home, {}, change)).records())
    return {table.condition.title for table in tables}


@pytest.mark.fault(
    "stored data",
    "conditions that differ, in one folder",
    "separate tables, named by the fields that differ",
)
@pytest.mark.parametrize("name", CHANGES)
def test_a_field_that_differs_is_named_with_its_value(name, tmp_path):
    change = {"budget": replace(BUDGET, **{name: CHANGES[name]})}
    ends = {title.rpartition(", ")[2] for title in titles(tmp_path, change)}
    values = (getattr(BUDGET, name), CHANGES[name])
    assert ends == {f"{name.replace('_', ' ')} {value}".removesuffix(".0") for value in values}


def test_other_weights_under_one_name_are_named(tmp_path):
    ends = {title.rpartition(", ")[2] for title in titles(tmp_path, {"weights": "another"})}
    assert ends == {"weights w", "weights another"}


@pytest.mark.fault(
    "stored data",
    "conditions that differ, in one folder",
    "separate tables, named by the fields that differ",
)
def test_two_budgets_in_one_folder_share_no_heading_row_or_label(tmp_path):
    decay, rate = (replace(BUDGET, **one) for one in ({"weight_decay": 0.5}, {"lrs": (1e-5,)}))
    folder = folder_with(tmp_path / "r", {}, {"budget": decay}, {"budget": rate})
    paths = write_report(folder, tmp_path / "o", ReportOptions(formats=("md", "csv", "tex")))
    page = (tmp_path / "o" / "report.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("### nano")]
    summary = (paths.tables / "summary.md").read_text()
    shown = [line for line in summary.splitlines() if line.startswith("### ")]
    assert len(shown) == len(set(shown)) == 3 and set(shown) <= set(headings)
    assert sum("weight decay 0.5" in line for line in shown) == 1
    assert sum("lr 1e-05" in line for line in shown) == 1
    for table in ("main", "summary", "contrasts", "coverage"):
        found = rows(paths.tables / f"{table}.csv")
        assert {row["condition"] for row in found} == {line[4:] for line in shown}, table
    labels = [
        line.partition("\\label{")[2].partition("}")[0]
        for file in paths.tables.glob("*.tex")
        for line in file.read_text().splitlines()
        if "\\label{" in line
    ]
    assert len(labels) == len(set(labels)) > 3


def test_one_condition_needs_no_column(tmp_path):
    only = ReportOptions(formats=("csv",))
    paths = write_report(folder_with(tmp_path / "r", {}), tmp_path / "o", only)
    assert "condition" not in rows(paths.tables / "main.csv")[0]


def test_a_report_without_a_request_says_so_first(tmp_path):
    folder = folder_with(tmp_path / "r", {})
    (folder / "study.json").unlink()
    write_report(folder, tmp_path / "o", ReportOptions(formats=("md",)))
    title, _, first, *_ = (tmp_path / "o" / "report.md").read_text().splitlines()
    assert title == "# FusionBench: results" and first.startswith("**No request is on record**")
