"""The tables beside the contrasts: scores and their marks, cost, layers, coverage, and bytes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_records import CODE
from toy_suite import cell, correlated, put_task, quick_disk, read, rows, section, the, write_suite

import fusionbench
from fusionbench.api.errors import UserError
from fusionbench.records.cost import Conditions, CostRecord, Spread, write
from fusionbench.records.outcomes import encode
from fusionbench.records.pairs import Results
from fusionbench.records.schema import full_text
from fusionbench.records.states import up_to_date
from fusionbench.records.store import Store
from fusionbench.report.build import FORMATS, SECTIONS, ReportOptions, write_report
from fusionbench.report.cost_table import measured_as, over_encoder, profiles_of
from fusionbench.report.figures.write import write_figures
from fusionbench.report.layer_table import _places
from fusionbench.stats.cells import share_correct
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.tied import task_pairs, tied_set

TASKS = ("digits", "textile")
SHARES = {"penultimate": 0.6, "repeat": 0.62, "mema": 0.75, "concat": 0.74}
TABLES = ("md", "csv", "tex")


def suite(seeds=6):
    rng = np.random.default_rng(1)
    made = {task: correlated(rng, SHARES, seeds=seeds, items=150) for task in TASKS}
    return {method: {task: made[task][method] for task in TASKS} for method in SHARES}


SUITE = suite()
TRACES = {"layer_weights": [0.1, 0.2, 0.7]}

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    mine = lambda m: TRACES if m == "mema" else {}  # noqa: E731
    return write_suite(
        tmp_path_factory.mktemp("results"), SUITE, trace=mine, taps=((1,), (2, 3, 4), (5, 7))
    )


@pytest.fixture(scope="module")
def home(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("report")
    write_report(folder, home, ReportOptions(formats=TABLES))
    return home


def contents(home):
    return {file.name: file.read_bytes() for file in (home / "tables").iterdir()}


def test_main_has_the_columns_that_programs_rely_on(home):
    head = (home / "tables" / "main.csv").read_text().splitlines()[0].split(",")
    wanted = ("method task metric mean ci_low ci_high n_seeds n_examples chance delta delta_low "
              "delta_high p p_adjusted verdict mde")  # fmt: skip
    assert [name for name in head if name in wanted.split()] == wanted.split()
    head = (home / "tables" / "contrasts.csv").read_text().splitlines()[0].split(",")
    wanted = ("scope,name,method,baseline,control,delta,low,high,testset_low,testset_high,p,"
              "p_adjusted,verdict,mde,n_seeds,n_examples,kind")  # fmt: skip
    assert head[:17] == wanted.split(",")


def test_a_cell_has_wilsons_interval_with_its_effective_number_of_answers(home):
    row = the(read(home, "main"), method="mema", task="digits")
    interval = share_correct(SUITE["mema"]["digits"], np.arange(150))
    assert float(row["mean"]) == pytest.approx(SUITE["mema"]["digits"].mean(), abs=1e-6)
    assert float(row["ci_low"]) == pytest.approx(float(interval.low), abs=1e-6)
    assert float(row["ci_high"]) == pytest.approx(float(interval.high), abs=1e-6)
    assert row["interval"] == "runs and images"


def test_the_tied_set_is_that_of_the_statistics_and_is_shaded_and_counted(home):
    values = np.stack([SUITE[method]["digits"] for method in sorted(SHARES)])
    expected = tied_set(task_pairs(TaskScores(values=values, groups=np.arange(150))))
    found = {row["method"]: row["tied"] == "true" for row in read(home, "main")
             if row["task"] == "digits"}  # fmt: skip
    assert found == dict(zip(sorted(SHARES), map(bool, expected), strict=True))
    assert 1 <= sum(found.values()) < 4
    page = section(home, "main")
    assert f"digits {sum(found.values())}" in page and "**" in page
    assert page.count("at least 95 % probability") == 1
    assert "compare no two methods" in page
    assert r"\cellcolor{gray!20}\textbf{" in (home / "tables" / "main.tex").read_text()


def test_the_suite_is_scored_from_chance_to_perfect(home):
    row = the(read(home, "summary"), method="mema", aggregate="suite")
    plain = np.mean([SUITE["mema"][task].mean() for task in TASKS])
    assert float(row["mean"]) == pytest.approx(plain, abs=1e-6)
    assert float(row["score"]) == pytest.approx((plain - 0.25) / 0.75, abs=1e-6)
    assert float(row["score_low"]) < float(row["score"]) < float(row["score_high"])
    assert f"{100 * float(row['score']):.1f} ± " in section(home, "main")


def test_a_run_far_from_the_others_is_flagged_and_all_runs_are_shown(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    with quick_disk():
        broken = np.zeros((1, 150), dtype=np.float32)
        put_task(Store.open(copy), "concat", "digits", broken, seeds=[6])
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    row = the(read(tmp_path / "o", "main"), method="concat", task="digits")
    assert row["outlying_seeds"] == "6" and row["seeds"].split()[6] == "0.000000"
    page = section(tmp_path / "o", "coverage")
    assert "concat on digits: seed 6 is more than 5 MAD from the median; all runs:" in page
    flagged = [row for row in read(tmp_path / "o", "main") if row["outlying_seeds"]]
    assert page.count("5 MAD") == len(flagged) < 4


def test_cost_of_an_encoder_that_no_cell_used_has_a_table_of_its_own(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    big = replace(profile("mema").conditions, encoder="shape:large", device="meta", mode="train")
    sizes = {"fusion": 7_000, "projector": 500, "over_projector": 7_100, "encoder": 300_000}
    counted = replace(
        profile("mema"), conditions=big, parameters=sizes, flops_over_encoder=55_900_000_000,
        flops_backward_over_encoder=496_000_000_000, flops_language_model_over=0,
        latency_ms=None, throughput=None, peak_memory_bytes=None, in_encoder=True,
    )  # fmt: skip
    write(copy, counted)
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    page = section(tmp_path / "o", "cost")
    (line,) = [line for line in page.splitlines() if "55.9 G" in line]
    for text in ("7,500", "7,100", "307,500", "496 G", "counted", "in the encoder"):
        assert text in line
    row = the(read(tmp_path / "o", "cost"), encoder="shape:large")
    assert (row["total_max"], row["flops_backward_over_encoder"]) == ("307500", "496000000000")
    ran = replace(big, device="a card", mode="inference")
    write(copy, replace(counted, conditions=ran, flops_backward_over_encoder=None,
                        latency_ms=Spread(median=9.5, q1=9.0, q3=10.0, blocks=30)))  # fmt: skip
    write_report(copy, tmp_path / "p", ReportOptions(formats=TABLES))
    page = section(tmp_path / "p", "cost")
    # What was measured takes the count's place, and keeps what only the count knows.
    (line,) = [line for line in page.splitlines() if "55.9 G" in line]
    assert "9.5 [9, 10]" in line and "496 G" in line


@pytest.mark.parametrize("score", [float("nan"), 7.5, 0.5])
def test_a_score_that_is_none_is_refused_and_one_on_disk_is_named_and_costs_its_cell(
    score, folder, tmp_path
):
    copy = shutil.copytree(folder, tmp_path / "r")
    scores = np.zeros(150, dtype=np.float32)
    wrong = cell("concat", "digits", 9, scores, score=score)
    with quick_disk(), pytest.raises(ValueError, match="score"):
        Store.open(copy).write(wrong, scores)
    wrong = replace(wrong, outcomes=hashlib.sha256(encode(scores)).hexdigest())
    (copy / "outcomes" / f"{wrong.id}.bin").write_bytes(encode(scores))
    (copy / "cells" / f"{wrong.id}.json").write_text(full_text(wrong))
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    page = section(tmp_path / "o", "coverage")
    assert f"cells/{wrong.id}.json: ignored: " in page and "score" in page.split(wrong.id)[1]


def test_cost_counts_what_is_added_and_says_what_was_not_measured(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    with quick_disk(), Store.create(copy) as store:
        sizes = {"fusion": 700, "projector": 25, "reader": 30, "encoder": 9000}
        put_task(store, "wide", "digits", SUITE["mema"]["digits"], parameters=sizes,
                 in_encoder=True)  # fmt: skip
    write(copy, profile("mema"))
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    found = read(tmp_path / "o", "cost")
    wide = the(found, method="wide")
    assert (wide["trainable_min"], wide["added_min"], wide["total_max"]) == ("755", "695", "9755")
    assert wide["cacheable"] == "false" and wide["latency_ms"] == ""
    mema = the(found, method="mema")
    assert (mema["latency_ms"], mema["latency_q1_ms"], mema["device"]) == ("12.5", "12", "card")
    assert (mema["flops_over_encoder"], mema["cacheable"]) == ("2000000", "true")
    page = section(tmp_path / "o", "cost")
    (line,) = [line for line in page.splitlines() if line.startswith("| wide")]
    assert line.count("not measured") == 7 and "in the encoder" in line
    (line,) = [line for line in page.splitlines() if line.startswith("| mema ")]
    assert (
        "train, card, bf16, batch 32, 32 px, projector 64 wide |" in line
        and "12.5 [12, 13]" in line
        and "2 M" in line
    )
    assert "1.5 [-0.25, 2]" in line
    ends = (mema["latency_over_encoder_q1_ms"], mema["latency_over_encoder_q3_ms"])
    assert (mema["latency_over_encoder_ms"], *ends) == ("1.5", "-0.25", "2")


def test_profiles_of_other_conditions_are_told_apart_and_only_the_plain_one_gives_the_time(folder):
    (table,) = Results.open(folder).tables
    row, start = table.methods.index("mema"), profile("mema")
    plain = {"mode": "inference", "dtype": "float32"}
    others = (
        {"language_model": True}, {"compile": "default"}, {"threads": 2}, {"image_size": 336},
        {"width": 4096}, {"batch": 1}, {"method_version": 0},
    )  # fmt: skip
    found = [
        replace(
            start, conditions=replace(start.conditions, **plain | other),
            latency_encoder_ms=Spread(median=share, q1=1, q3=1, blocks=30),
        )
        for share, other in enumerate(others, 1)
    ]  # fmt: skip
    kept = profiles_of(found, table, row)
    assert len({measured_as(one) for one in kept}) == len(kept) == len(others) - 1
    alone = [one for one in found if one.conditions.batch == 1 or one.conditions.compile != "off"
             or one.conditions.language_model]  # fmt: skip
    time = over_encoder(alone, table, row)
    assert time.batch == 1 and time.share == pytest.approx(100 * 1.5 / 6)
    assert over_encoder(alone[:2], table, row) is None


def test_values_over_joined_layers_are_labelled_by_them_and_never_by_blocks():
    joined = ((1, 2), (2, 3, 4), (7,))
    assert _places(joined, 3) == ("tap 1-2", "tap 2-4", "tap 7")
    assert _places(joined, 2) == ("tap 1-2", "tap 2-4")
    assert _places(joined, 4) == ("value 1", "value 2", "value 3", "value 4")
    assert _places(((0,), (1,), (2,)), 2) == ("block 1", "block 2")


def test_a_task_whose_examples_are_of_one_image_is_a_gap_and_no_traceback(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    with quick_disk(), Store.open(copy) as store:
        for method in ("penultimate", "mema"):
            put_task(store, method, "one", SUITE["mema"]["digits"], images=["a"] * 150)
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    row = the(read(tmp_path / "o", "main"), method="mema", task="one")
    assert row["status"] == "done"
    assert "all examples of one belong to one image" in section(tmp_path / "o", "contrasts")


def profile(label):
    how = Conditions(
        method=label, method_version=1, settings={}, encoder="nano", weights="w", image_size=32,
        width=64, mode="train", batch=32, dtype="bf16", device="card",
    )  # fmt: skip
    return CostRecord(
        conditions=how, label=label, layers=8, dim=96, tokens=17, in_encoder=False,
        parameters={"fusion": 1}, tokens_out=16, flops_over_encoder=2_000_000,
        latency_ms=Spread(median=12.5, q1=12.0, q3=13.0, blocks=30), throughput=2560.0,
        latency_over_encoder_ms=Spread(median=1.5, q1=-0.25, q3=2.0, blocks=30),
    )  # fmt: skip


def test_a_new_profile_makes_the_report_stale(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    write_report(copy)
    assert up_to_date(Store.open(copy), copy / "report")
    write(copy, profile("mema"))
    assert not up_to_date(Store.open(copy), copy / "report")


def test_a_damaged_profile_is_named_and_shows_nothing(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    path = write(copy, profile("mema"))
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"throughput": 9e9}))
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    assert "9e+09" not in (tmp_path / "o" / "tables" / "cost.csv").read_text()
    assert f"profiles/{path.name}" in section(tmp_path / "o", "coverage")


def test_layers_are_named_by_what_the_method_reads(home):
    found = read(home, "layers")
    assert {row["method"] for row in found} == {"mema"}
    places = [row["layer"] for row in found if row["task"] == "digits"]
    assert places == ["tap 1", "tap 2-4", "tap 5+7"]
    assert the(found, task="digits", layer="tap 5+7")["median"] == "0.700000"
    assert "0.70 [0.70 to 0.70]" in section(home, "layers")


@pytest.mark.thorough
def test_the_same_bytes_with_any_hash_seed_and_any_global_random_state(folder, home, tmp_path):
    code = (
        "import random, sys, numpy as np; random.seed(1); np.random.seed(1)\n"
        "from fusionbench.report import build\n"
        "build.write_figures = lambda *_: []\n"
        "only = build.ReportOptions(formats=('md', 'csv', 'tex'))\n"
        "build.write_report(sys.argv[1], sys.argv[2], only)"
    )
    root = Path(fusionbench.__file__).parent.parent
    # Another seed than this process has, whose own is drawn where none is set.
    seed = str(1 + int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")))
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "again")], check=True,
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert contents(tmp_path / "again") == contents(home)


@pytest.mark.thorough
def test_deleted_tables_come_back_byte_for_byte(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("fusionbench.report.build.write_figures", write_figures)
    write_report(folder, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(before) > 15
    shutil.rmtree(tmp_path / "tables")
    shutil.rmtree(tmp_path / "figures")
    write_report(folder, tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_one_table_in_one_format_writes_nothing_else(folder, tmp_path):
    paths = write_report(folder, tmp_path, ReportOptions(table="cost", formats=("tex",)))
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["cost.tex"]
    assert [p.name for p in paths.written] == ["cost.tex"]
    with pytest.raises(UserError, match="no table 'mian'; did you mean 'main'"):
        write_report(folder, tmp_path, ReportOptions(table="mian"))
    with pytest.raises(UserError, match="no format 'pdf'"):
        write_report(folder, tmp_path, ReportOptions(formats=("pdf",)))
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
    assert {"md", "tex", "csv", "html"} == set(FORMATS)


def test_markdown_of_a_table_is_on_the_page_and_in_a_file_if_printed_or_asked_for_alone(
    home, folder, tmp_path
):
    write_report(folder, tmp_path, ReportOptions(table="main", formats=("md",)))
    alone = (tmp_path / "tables" / "main.md").read_text()
    assert alone.rstrip() == section(home, "main").rstrip() and alone
    written = {path.name for path in (home / "tables").glob("*.md")}
    assert written == {"answer.md", "summary.md", "gaps.md"}


def test_a_table_that_has_nothing_left_to_say_is_removed(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    assert (tmp_path / "o" / "tables" / "layers.csv").exists()
    for record in list(Store.open(copy).records()):
        if record.label == "mema":
            (copy / "cells" / f"{record.id}.json").unlink()
    write_report(copy, tmp_path / "o", ReportOptions(formats=TABLES))
    assert not (tmp_path / "o" / "tables" / "layers.csv").exists()


def test_continuous_scores_are_compared_as_they_are(tmp_path):
    rng = np.random.default_rng(6)
    made = {
        method: {task: np.clip(rng.normal(mean, 0.1, (5, 80)), 0, 1).astype(np.float32)
                 for task in TASKS}
        for method, mean in (("penultimate", 0.4), ("repeat", 0.4), ("concat", 0.5))
    }  # fmt: skip
    folder = write_suite(tmp_path / "r", made)
    row = the(rows(folder, tmp_path / "o", table="main"), method="concat", task="digits")
    assert float(row["delta"]) == pytest.approx(0.1, abs=0.03) and row["verdict"] == "better"
    assert float(row["ci_low"]) < 0.5 < float(row["ci_high"]) < 0.53


def test_coverage_counts_every_cell_and_gives_its_reason(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    with quick_disk(), Store.create(copy) as store:
        scores = np.zeros(1, dtype=np.float32)
        skipped = cell("tall", "digits", 0, scores, status="skipped", reason="needs a grid",
                       score=None)  # fmt: skip
        store.write(skipped)
        trace = "Traceback\n  File x.py\nValueError: the gate diverged"
        store.write_failure(cell("tall", "textile", 0, scores, status="failed", reason=trace,
                                 score=None))  # fmt: skip
    found = rows(copy, tmp_path / "o", table="coverage")
    assert the(found, method="tall", task="digits")["reason"] == "needs a grid"
    failed = the(found, method="tall", task="textile")
    assert (failed["failed"], failed["reason"]) == ("1", "ValueError: the gate diverged")
    assert the(found, method="mema", task="digits")["done"] == "6"
    assert all(row["method"] != "tall" or row["done"] == "0" for row in found)


def test_the_code_of_the_toys_is_that_of_a_clean_commit():
    assert CODE["dirty"] is False
