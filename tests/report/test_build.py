"""The written report: the same bytes for the same records, honest words, planted tasks apart."""

import csv
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_records import put, record, spec
from toy_suite import section, study

import fusionbench
from fusionbench.api.errors import UserError
from fusionbench.cli.reports import check, diff, power, write
from fusionbench.records.history import Request
from fusionbench.records.pairs import NO_TASK, NotComparable, Results, common, measure
from fusionbench.records.probes import ProbeMap, write_probe
from fusionbench.records.scores import BLIND, INSENSITIVE
from fusionbench.records.states import up_to_date
from fusionbench.records.store import Store
from fusionbench.report.build import write_report
from fusionbench.report.power import PowerOptions
from fusionbench.report.results import LoadedResults
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


@pytest.mark.thorough
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
    assert re.search(r"\| mema +\| 69.4 ± ", section(report, "summary"))


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
    page = section(report, "coverage")
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
    write_probe(folder, ProbeMap(
        encoder="nano", weights="w", image_size=0, task="digits", task_version=1, data="d",
        group="fine", metric="accuracy", chance=0.1, val=(), n=9, n_train=9, n_val=9,
        provenance={}, layers=(0.2, 0.3),
    ))  # fmt: skip
    assert not up_to_date(Store.open(folder), folder / "report")
    write_report(folder)
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


@pytest.mark.thorough
def test_two_conditions_in_one_folder_are_two_tables(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "copy")
    budget = replace(QUICK.budget, steps=61)
    put(Store.open(folder), spec("mema", "digits", 0, budget=budget), 0.9)
    page = write_report(folder).page.read_text()
    for steps in (QUICK.budget.steps, 61):
        assert f"### nano, {steps} steps of {QUICK.budget.batch}" in page
    assert "figures/scores-2.svg" in page


# A reduced form of `benchmarks/report_size.py`: 2,400 records, their report, its memory.

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "report_size.py"
REPORT = """
import re, sys
from pathlib import Path
from fusionbench.report.build import ReportOptions, write_report
write_report(sys.argv[1], sys.argv[2], ReportOptions(formats=("csv", "tex")))
# Not getrusage: its maximum is inherited from the process that started this one.
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else 0
print(int(peak) / 2**20)
"""
# 100,000 records may take 2 GiB; starting takes 0.15 GiB of it.
GIBIBYTES = 0.3


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks travel with the checkout only")
def test_a_report_takes_less_than_a_few_kilobytes_for_each_record(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    found = importlib.util.spec_from_file_location("report_size", SCRIPT)
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    folder = tmp_path / "results"
    folder.mkdir()
    count = script.write_records(folder, methods=12, tasks=10, seeds=10, encoders=2, examples=128)
    assert count == 2400
    home = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(folder), str(home)], check=True, capture_output=True,
        text=True, cwd=Path(fusionbench.__file__).parent.parent,
    )  # fmt: skip
    assert float(done.stdout) < GIBIBYTES
    assert len((home / "tables" / "main.csv").read_text().splitlines()) == 1 + 12 * 10 * 2


# An aggregate over no task at all is a reason in every table, never a traceback.

GAINS = {"penultimate": 0.0, "repeat": 0.0, "mema": 0.1}


@pytest.fixture(scope="module", params=[1, 5])
def folder(request, tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "results", GAINS, seeds=request.param)


@pytest.fixture(params=[BLIND, INSENSITIVE])
def none_counts(request, monkeypatch):
    def marked(table, *_):
        return replace(table, tasks=tuple(replace(t, mark=request.param) for t in table.tasks))

    monkeypatch.setattr("fusionbench.records.pairs.marked_by_blind", marked)


@pytest.mark.usefixtures("none_counts")
def test_no_pair_has_no_estimate_and_the_reason():
    assert measure([], []).gap == NO_TASK
    with pytest.raises(NotComparable, match=NO_TASK):
        common([])


@pytest.mark.thorough
@pytest.mark.usefixtures("none_counts")
def test_the_report_says_so_and_has_the_tasks(folder, tmp_path):
    write_report(folder, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "suite (0 tasks)" in page and "no task" in page
    assert "digits" in (tmp_path / "tables" / "main.csv").read_text()


@pytest.mark.few(1)
@pytest.mark.usefixtures("none_counts")
def test_claims_power_diff_and_frames_say_so(folder, tmp_path):
    heard = io.StringIO()
    assert check(folder, "published", out=None, plugins=(), stream=heard) == 0
    assert "0 holds, 0 fails" in heard.getvalue()
    heard = io.StringIO()
    power(folder, PowerOptions(), out=None, stream=heard)
    assert "digits" in heard.getvalue() and "suite" not in heard.getvalue()
    heard = io.StringIO()
    diff(folder, folder, out=None, stream=heard)
    assert "digits" in heard.getvalue()
    found = LoadedResults(folder)
    assert len(found.contrasts()) and len(found.scores())
    write("mema", folder, tmp_path / "paper", io.StringIO())


@pytest.mark.usefixtures("none_counts")
def test_the_tables_count_no_task(folder):
    (table,) = Results.open(folder).tables
    assert not table.suite.any()
