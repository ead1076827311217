"""The written report: the same bytes for the same records, honest words, planted tasks apart."""

import csv
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from toy_records import put, record, spec

from fusionbench.api.errors import UserError
from fusionbench.records.history import Request
from fusionbench.records.states import up_to_date
from fusionbench.records.store import Store
from fusionbench.report.build import write_report
from fusionbench.study.study import QUICK, as_plain

METHODS = {"last": 0.3, "penultimate": 0.5, "mema": 0.7, "mema-no_feedback": 0.5}


def fill(folder, *, reverse=False):
    with Store.create(folder) as store:
        cells = [
            (method, task, seed, share)
            for method, share in METHODS.items()
            for task in ("digits", "textile")
            for seed in range(3)
        ]
        for method, task, seed, share in cells[:: -1 if reverse else 1]:
            put(store, spec(method, task, seed), share + seed / 40, seconds=float(reverse))
        for seed in range(3):
            planted = spec("last", "planted_layer", seed, encoder="planted")
            put(store, planted, 1.0, in_suite=False)
        put(store, spec("odd", "digits", 0), 0.5, unmoved=("gate.weight",), lr_at_edge=True)
        trace = f"File '{folder}/x.py', line 3\nValueError: the gate diverged"
        store.write_failure(record(spec("odd", "textile", 0), status="failed", reason=trace))
        store.write(record(spec("tall", "digits", 0), status="skipped", reason="needs a grid"))
        store.history.add(
            Request(
                study=as_plain(QUICK) | {"contrasts": []},
                labels=(*METHODS, "odd", "tall", "planned"),
                tasks=("digits", "textile"),
                unavailable={"elpv": "needs elpv_dataset; get it with: pip install elpv-dataset"},
            )
        )
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    home = tmp_path_factory.mktemp("report")
    write_report(results, home)
    return home


def files(home):
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_the_same_records_give_the_same_bytes_whatever_the_folder_order_and_timing(
    report, tmp_path
):
    other = fill(tmp_path / "elsewhere", reverse=True)
    write_report(other, tmp_path / "out")
    first, second = files(report), files(tmp_path / "out")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_table_for_programs_has_a_row_for_every_pair_and_no_zero_for_a_missing_one(report):
    with (report / "tables" / "main.csv").open() as file:
        rows = {(row["method"], row["task"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6 * 2
    mema = rows["mema", "digits"]
    # 0.7, 0.725 and 0.75 of 40: 28, 29 and 30 right; t(0.975, 2) = 4.302653.
    assert float(mema["mean"]) == pytest.approx(29 / 40)
    assert float(mema["ci_high"]) == pytest.approx(29 / 40 + 4.302653 * 0.025 / 3**0.5, abs=1e-5)
    assert (mema["n_seeds"], mema["n_examples"], mema["chance"]) == ("3", "40", "0.100000")
    assert mema["parameters_fusion"] == "10" and mema["metric"] == "accuracy"
    for pair, status in {("odd", "textile"): "failed", ("tall", "digits"): "skipped",
                         ("tall", "textile"): "not run"}.items():  # fmt: skip
        assert rows[pair]["status"] == status
        assert rows[pair]["mean"] == rows[pair]["ci_low"] == ""
    single = rows["odd", "digits"]
    assert single["mean"] == "0.500000" and single["ci_low"] == single["ci_high"] == ""


def test_planted_tasks_have_their_own_section_and_enter_no_mean(report):
    page = (report / "report.md").read_text()
    before, after = page.split("## Planted ground truth")
    before = before[before.index("## Leaderboard") :]
    assert "planted_layer" not in before and "planted_layer" in after
    assert "planted" not in (report / "tables" / "main.csv").read_text()
    assert "planted_layer" in (report / "tables" / "planted.csv").read_text()
    assert re.search(r"\| mema +\| 69.4 ± ", (report / "tables" / "summary.md").read_text())


def test_the_header_says_what_the_study_is_worth_and_prints_no_test(report):
    page = (report / "report.md").read_text()
    assert "The whole machine on real input, too small to settle the question." in page
    assert "no test is printed" in page and "With 3 seeds per cell" in page
    assert not re.search(r"p ?[<=] ?0|\*\*\*|significant", page)


def test_a_method_that_equals_another_is_shown_as_such(report):
    page = (report / "report.md").read_text()
    assert "mema-no_feedback (= penultimate)" in page
    assert "`mema-no_feedback` scored as `penultimate` on every single example" in page


def test_what_did_not_run_is_named_with_its_reason_and_no_path(report, results):
    page = (report / "tables" / "coverage.md").read_text()
    assert "failed: odd on textile, 1 cell: ValueError: the gate diverged" in page
    assert "skipped: tall on digits, 1 cell: needs a grid" in page
    assert "elpv: needs elpv_dataset; get it with: pip install elpv-dataset" in page
    assert re.search(rf"\| planned +\| 0 +\| 0 +\| 0 +\| {2 * QUICK.seeds} ", page)
    assert "odd: training left unchanged: gate.weight (1 of 1 cells)" in page
    assert "odd: the learning rate is at the edge of the grid in 1 of 1 cells" in page
    for content in files(report).values():
        assert str(results).encode() not in content


@pytest.mark.usefixtures("without_figures")
def test_mixed_and_uncommitted_code_is_said_aloud(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "copy")
    store = Store.open(folder)
    other = {"code": {"fusionbench": "0.1.0", "commit": "beef", "dirty": True}, "method": "pack 2"}
    put(store, spec("mema", "digits", 9), 0.5, provenance=other)
    page = write_report(folder).page.read_text()
    assert "**Mixed code**" in page and "**Uncommitted changes**" in page
    assert "Methods from pack 2" in page
    (tmp_path / "one").mkdir()
    assert "Mixed code" not in write_report(results, tmp_path / "one").page.read_text()


@pytest.mark.usefixtures("without_figures")
def test_ignored_files_are_named_without_the_folder(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "copy")
    (folder / "cells" / "notes.txt").write_text("mine")
    page = write_report(folder).page.read_text()
    assert "- cells/notes.txt: ignored: not a file of FusionBench" in page


@pytest.mark.usefixtures("without_figures")
def test_a_report_knows_whether_it_shows_the_folder_as_it_is(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "copy")
    assert not up_to_date(Store.open(folder), folder / "report")
    write_report(folder)
    assert up_to_date(Store.open(folder), folder / "report")
    put(Store.open(folder), spec("mema", "digits", 9), 0.5)
    assert not up_to_date(Store.open(folder), folder / "report")
    write_report(folder)
    put(Store.open(folder), spec("mema", "digits", 10), 0.5)
    next((folder / "cells").glob("*.json")).unlink()
    assert not up_to_date(Store.open(folder), folder / "report")


def test_a_folder_without_records_has_no_report(tmp_path):
    with Store.create(tmp_path / "empty"):
        pass
    with pytest.raises(UserError, match="holds no records"):
        write_report(tmp_path / "empty")


def test_the_figure_shows_every_task_and_cuts_no_name(report):
    svg = (report / "figures" / "scores.svg").read_text()
    assert all(f"<!-- {name} -->" in svg for name in ("digits", "textile", "chance", "failed"))
    with Image.open(report / "figures" / "differences.png") as image:
        pixels = np.asarray(image.convert("L"))
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    assert all((edge == 255).all() for edge in edges) and pixels.min() < 100


def test_two_conditions_in_one_folder_are_two_tables(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "copy")
    budget = replace(QUICK.budget, steps=61)
    put(Store.open(folder), spec("mema", "digits", 0, budget=budget), 0.9)
    page = write_report(folder).page.read_text()
    for steps in (QUICK.budget.steps, 61):
        assert f"### nano, {steps} steps of {QUICK.budget.batch}" in page
    assert "figures/scores-2.svg" in page
