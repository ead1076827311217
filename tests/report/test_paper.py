"""A paper's tables in their shape: its rows, our scores, its numbers apart and marked."""

import csv
import io
import json
import re

import in_process
import numpy as np
import pytest
from paired_studies import study
from toy_suite import write_suite

from fusionbench.api.errors import UserError
from fusionbench.cli.reports import NAMES, write
from fusionbench.records.pairs import Results, minus, task_weights
from fusionbench.records.yaml_files import parse_section
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods
from fusionbench.report.paper import Paper, _built, paper, papers
from fusionbench.report.published import reported

GAINS = {"penultimate": 0.0, "dense_connector-dci": 0.08, "mema": 0.05, "mema-no_query": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "results", GAINS, seeds=5)


@pytest.fixture(scope="module")
def home(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("paper")
    for name in papers():
        write(name, folder, home, io.StringIO())
    return home


def rows_of(home, name):
    return list(csv.DictReader((home / f"{name}.csv").read_text().splitlines()))


def test_the_command_offers_exactly_the_papers_there_are():
    assert set(NAMES.replace(" or ", ", ").split(", ")) == set(papers())
    with pytest.raises(UserError, match="no paper 'mmfusr'; did you mean 'mmfuser'"):
        paper("mmfusr")


def test_every_row_names_a_method_that_can_be_run_or_says_why_not():
    catalog = read_catalog()
    for one in papers().values():
        for name in (*one.methods("probe"), *one.methods("vlm")):
            assert select_methods(catalog, [name])[0].label == name
        for table in one.tables:
            assert table.against in one.methods("probe")
            assert all(bool(line.ours) != bool(line.why) for line in table.rows)


def test_every_published_column_and_every_row_that_claims_one_has_a_number():
    for one in papers().values():
        for table in one.tables:
            found = [table.published(line) for line in table.rows]
            assert set().union(*found) == set(table.benchmarks), (one.name, table.name)
            for line, numbers in zip(table.rows, found, strict=True):
                assert bool(numbers) == bool(line.reported), (one.name, line)


def test_the_published_numbers_are_those_of_the_file_and_second_hand_ones_are_marked(home):
    rows = [row for row in rows_of(home, "dense_connector-ablation") if row["kind"] == "published"]
    known = {(one.benchmark, one.value, one.evidence, one.source) for one in reported()}
    assert {(r["column"], r["published"], r["evidence"], r["source"]) for r in rows} <= known
    page = (home / "dense_connector.md").read_text()
    (line, *_) = [line for line in page.splitlines() if line.startswith("| SCI 8,16,24")]
    assert "63.7†" in line
    (line, *_) = [line for line in page.splitlines() if line.startswith("| Dense Connector ")]
    assert " 63.8 " in line


def test_our_scores_and_gains_are_those_of_the_records(folder, home):
    results = Results.open(folder)
    (table,) = results.tables
    rows = {(r["row"], r["column"]): r for r in rows_of(home, "mema-components")
            if r["kind"] == "ours"}  # fmt: skip
    names = [task.name for task in table.tasks]
    mine, full = table.methods.index("mema-no_query"), table.methods.index("mema")
    digits = names.index("digits")
    cell = rows["without the question", "digits"]
    assert float(cell["mean"]) == pytest.approx(table.values[mine, digits].mean(), abs=1e-6)
    for column, tasks in (("suite", [0, 1, 2]), ("digits", [digits])):
        weights = task_weights(table, tasks)
        estimate = results.contrast(table, minus(mine, full), tasks, weights).estimate
        cell = rows["without the question", column]
        assert float(cell["gain"]) == pytest.approx(float(estimate.value), abs=1e-6)
        low, high = estimate.interval()
        assert float(cell["gain_low"]) == pytest.approx(float(low), abs=1e-6)
        assert float(cell["gain_high"]) == pytest.approx(float(high), abs=1e-6)
    assert not rows["Mema", "suite"]["gain"] and rows["Mema", "suite"]["mean"]


def test_what_was_not_run_is_named_in_its_row_and_the_page_says_how_to_run_it(home):
    page = (home / "mema.md").read_text()
    (line, *_) = [line for line in page.splitlines() if line.startswith("| r = 8")]
    assert line.count("not run") == 3
    (hint,) = re.findall(r"`--methods '([^']*)'`", page)
    assert "mema[reduction=8]" in hint and "dense_connector-dci" not in hint
    rows = [row for row in rows_of(home, "lsf-triple") if row["row"] == "internal direct"]
    assert rows[-1]["why_not"] == "needs the layers of a language model"


def test_the_page_opens_with_what_differs_before_any_number(home):
    for name in papers():
        page = (home / f"{name}.md").read_text()
        start = page.index("**The two are not comparable.**")
        assert start < page.index("\n|") and "The paper's regime:" in " ".join(page.split())


def test_the_same_records_give_the_same_bytes(folder, home, tmp_path):
    for name in papers():
        write(name, folder, tmp_path, io.StringIO())
    first = {file.name: file.read_bytes() for file in home.iterdir()}
    assert first == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    kinds = {name.rsplit(".", 1)[1] for name in first}
    assert kinds == {"md", "csv", "tex"}


def test_every_latex_row_has_all_columns_and_no_open_brace(home):
    for file in home.glob("*.tex"):
        text = file.read_text()
        assert text.isascii() and text.count("{") == text.count("}")
        for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
            counts = {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines()
                      if line.endswith(r"\\")}  # fmt: skip
            assert len(counts) == 1


def test_the_default_place_is_the_folders_report(folder):
    stream = io.StringIO()
    write("lsf", folder, None, stream)
    assert stream.getvalue().strip() == str(folder / "report" / "paper" / "lsf.md")


def test_an_unknown_key_of_a_paper_is_named_with_its_line_and_the_nearest_one():
    text = "mine:\n  title: t\n  paper: p\n  regime: r\n  difers: []\n  tables: []\n"
    section = parse_section(text, "papers.yaml", "papers", hint="")["mine"]
    with pytest.raises(UserError, match=r"line 5: unknown key 'difers'; did you mean 'differs'"):
        _built(Paper, section, name="mine", tables=())
    del section["difers"]
    with pytest.raises(UserError, match="differs is missing"):
        _built(Paper, section, name="mine", tables=())


def test_a_table_of_the_track_vlm_is_filled_from_its_own_records(tmp_path):
    from vlm_records import write_vlm

    folder = write_vlm(tmp_path / "vlm", methods=("blind", "penultimate", "mema"))
    write("mema", folder, None, io.StringIO())
    home = folder / "report" / "paper"
    rows = {(row["row"], row["column"]): row for row in rows_of(home, "mema-main")}
    assert "vlm: " in rows["Mema", "suite"]["condition"] and rows["Mema", "pope"]["mean"]
    # A benchmark of the paper stands beside its own numbers.
    (header, *_) = [line for line in (home / "mema.md").read_text().splitlines() if "| row" in line]
    assert re.search(r"\| pope +\|.* published POPE", header)


def test_rows_inside_a_language_model_have_a_method_in_the_track_vlm_only():
    catalog = read_catalog()
    inside = [row for one in papers().values() for table in one.tables for row in table.rows
              if row.vlm]  # fmt: skip
    assert len(inside) >= 4
    for row in inside:
        assert row.here("vlm") == row.vlm and row.here("probe") == row.ours == "" and row.why
        assert select_methods(catalog, [row.vlm])[0].label == row.vlm


def test_run_fills_what_a_table_lacks_in_the_folder_s_own_study_and_prints_it(tmp_path):
    out = tmp_path / "out"
    run = ("run", "--preset", "smoke", "--tasks", "digits", "--device", "cpu", "--quiet")
    in_process.fusionbench(*run, "--methods", "penultimate", "--out", out)
    asked = (out / "study.json").read_bytes()
    paper_ = ("paper", "mmfuser", out, "--run", "--quiet", "--device", "cpu")
    planned = in_process.fusionbench(*paper_, "--dry-run")
    wanted = len(paper("mmfuser").methods("probe"))
    assert f"{wanted - 1} of {wanted} cells to run, 1 are there already" in planned
    said = in_process.fusionbench(*paper_)
    assert "## " in said and "| not run" not in said and "published" in said
    assert said.strip().endswith(str(out / "report" / "paper" / "mmfuser.md"))
    assert (out / "study.json").read_bytes() == asked
    assert f"0 of {wanted} cells to run" in in_process.fusionbench(*paper_, "--dry-run")


def test_papers_are_listed_within_80_columns(call):
    code, out, _ = call("list", "papers")
    assert code == 0 and all(len(line) <= 80 for line in out.splitlines())
    assert all(re.search(rf"^{name}$", out, re.MULTILINE) for name in papers())
    words = " ".join(out.split())
    assert all(one.title in words for one in papers().values())
    code, out, _ = call("list", "papers", "--json")
    assert code == 0 and {row["name"] for row in json.loads(out)} == set(papers())


def test_a_folder_that_lacks_methods_of_a_table_is_told_with_the_command_that_runs_them(
    call, tmp_path
):
    names = paper("mmfuser").methods("probe")
    suite = {name: {"digits": np.ones((1, 5), dtype=np.float32)} for name in names[:2]}
    folder = write_suite(tmp_path / "r", suite)
    code, out, said = call("paper", "mmfuser", folder)
    assert code == 0 and out.endswith("mmfuser.md\n")
    assert f"{len(names) - 2} of {len(names)} methods of its tables have no record here" in said
    assert "`fusionbench paper mmfuser --run` runs them" in said
