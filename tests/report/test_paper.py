"""A paper's tables in their shape: its rows, our scores, its numbers apart and marked."""

import csv
import io
import json
import re
from dataclasses import replace

import in_process
import numpy as np
import pytest
from toy_records import put, record, spec
from toy_suite import study, write_suite
from vlm_records import TRAINING

from fusionbench.api.errors import UserError
from fusionbench.cli.reports import NAMES, write
from fusionbench.records.pairs import Results, minus, task_weights
from fusionbench.records.scores import score_tables
from fusionbench.records.store import Store
from fusionbench.records.yaml_files import parse_section
from fusionbench.registry.catalog import read_catalog
from fusionbench.registry.selection import select_methods
from fusionbench.report.build import write_report
from fusionbench.report.contrasts import make_plan
from fusionbench.report.paper import Paper, PaperScores, _built, paper, papers
from fusionbench.report.published import Reported, reported, reported_rows, reported_section

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
    assert re.search(r"\| pope, accuracy +\|.* published POPE", header)


def test_rows_inside_a_language_model_have_a_method_in_the_track_vlm_only():
    catalog = read_catalog()
    inside = [row for one in papers().values() for table in one.tables for row in table.rows
              if row.vlm]  # fmt: skip
    assert len(inside) >= 4
    for row in inside:
        assert row.here("vlm") == row.vlm and row.here("probe") == row.ours == "" and row.why
        assert select_methods(catalog, [row.vlm])[0].label == row.vlm


@pytest.mark.thorough
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
    # Without the folder the command would run into `results/local`.
    assert f"`fusionbench paper mmfuser {folder} --run` runs them" in said
    page = (folder / "report" / "paper" / "mmfuser.md").read_text()
    assert f"`fusionbench paper mmfuser {folder} --run` fills them" in page


def test_a_method_of_two_versions_is_ambiguous_and_the_newer_one_is_the_default_contrast(tmp_path):
    folder = study(tmp_path / "results", {"penultimate": 0.0, "mema": 0.1}, seeds=4)
    with Store.open(folder) as store:
        for one in list(store.records()):
            if one.label == "mema":
                older = replace(one, spec=replace(one.spec, method_version=0))
                store.write(older, store.outcomes(one), store.items(one))
    (table,) = Results.open(folder).tables
    newer, older = (f"mema (version {n})" for n in (1, 0))
    assert {newer, older} < set(table.methods)
    assert [one.method for one in make_plan(table, ()).contrasts] == [newer]
    (row,) = [row for row in PaperScores(Results.open(folder), table).fill(
        paper("mema").tables[0]) if row.ours == "mema"]  # fmt: skip
    assert row.gap == f"mema is ambiguous: {older} and {newer}"
    write("mema", folder, tmp_path / "home", io.StringIO())
    page = (tmp_path / "home" / "mema.md").read_text()
    assert "mema," not in page.split("--methods ")[1].split("`")[0]


# Published numbers: each with its source, beside ours only where the regime is the same.

MMFUSER = next(
    one for one in reported()
    if (one.method, one.benchmark, one.base_model) == ("MMFuser", "GQA", "LLaVA-1.5-7B")
)  # fmt: skip


MEASURES = {"accuracy": 0.4, "perception": 1503.0, "f1_mean": 0.86}


def tables(*cells):
    rng = np.random.default_rng(0)
    return score_tables(
        [record(cell, rng.integers(0, 2, 40).astype(float), measures=MEASURES) for cell in cells]
    )


def in_its_regime(number: Reported, **changes):
    training = replace(TRAINING, language=changes.pop("language", f"hf:{number.reader}"))
    start = {"track": "vlm", "encoder": number.encoder, "task": number.task,
             "method": number.ours, "training": training}  # fmt: skip
    cells = [spec(seed=seed, **start | changes) for seed in range(3)]
    return tables(*cells)


@pytest.mark.usefixtures("without_figures")
def test_every_number_has_a_source_an_address_and_says_how_it_was_read():
    assert len(reported()) > 450
    for one in reported():
        assert one.source and one.url.startswith("https://"), one
        assert one.evidence.startswith(("first-hand", "second-hand")), one
        assert one.method and one.given_by and one.base_model and one.regime and one.metric, one
        assert np.isfinite(float(one.value)), one
        assert one.task == one.task.lower() and " " not in one.task


@pytest.mark.usefixtures("without_figures")
def test_no_number_contradicts_another_of_the_same_table():
    found = {}
    for one in reported():
        if one.given_by == "users":
            continue
        key = (one.method, one.given_by, one.base_model, one.regime, one.benchmark, one.metric,
               one.source)  # fmt: skip
        assert found.setdefault(key, one.value) == one.value, one


@pytest.mark.usefixtures("without_figures")
def test_our_names_are_names_that_can_be_run():
    catalog = read_catalog()
    for name in {one.ours for one in reported() if one.ours}:
        assert select_methods(catalog, [name])[0].label == name


@pytest.mark.usefixtures("without_figures")
def test_in_another_regime_the_section_says_so_and_shows_nothing_of_ours():
    text = reported_section(tables(spec("mmfuser", "digits", 0), spec("mmfuser", "gqa", 0)))
    assert "nothing published can be compared" in text
    assert "| ours" not in text and "digits" not in text
    rows = reported_rows(tables(spec("mmfuser", "gqa", 0)))
    assert all(not row["comparable"] and np.isnan(row["ours_mean"]) for row in rows)
    assert len(rows) == len(reported())


@pytest.mark.usefixtures("without_figures")
def test_in_the_same_regime_our_cell_stands_beside_the_published_number():
    same = in_its_regime(MMFUSER)
    (row,) = [row for row in reported_rows(same) if row["comparable"]
              and row["given_by"] == "MMFuser"]  # fmt: skip
    assert str(row["value"]) == MMFUSER.value and row["ours_runs"] == 3
    assert row["ours_mean"] == pytest.approx(40.0)
    text = reported_section(same)
    assert "nothing published can be compared" not in text
    line = next(line for line in text.splitlines() if line.startswith("| GQA"))
    assert "mmfuser" in line and f"{MMFUSER.value} (MMFuser)" in line


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("benchmark", "ours"), [("MME", 1503.0), ("POPE", 86.0), ("ScienceQA-IMG", None)]
)
def test_our_number_is_of_the_published_metric_and_unit_or_is_not_there(benchmark, ours):
    number = next(one for one in reported() if (one.given_by, one.benchmark, one.base_model)
                  == ("LLaVA", benchmark, "LLaVA-1.5-7B"))  # fmt: skip
    same = in_its_regime(number, task=number.task.removesuffix("_img"))
    found = {row["ours_mean"] for row in reported_rows(same) if row["source"] == number.source
             and row["benchmark"] == benchmark and row["comparable"]}  # fmt: skip
    assert sorted(found) == ([] if ours is None else [pytest.approx(ours)])


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "metric", ["as reported", "accuracy test-dev", "accuracy (total vs IMG not stated)"]
)
def test_a_metric_that_is_not_ours_or_not_stated_is_not_comparable(metric):
    numbers = [one for one in reported() if one.metric == metric and one.encoder and one.reader]
    assert numbers
    for number in numbers:
        rows = reported_rows(in_its_regime(number))
        assert not [row for row in rows if row["comparable"] and row["metric"] == metric]


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    "changes",
    [
        {"track": "probe"},
        {"encoder": "nano"},
        {"language": "words"},
        {"training": None},
        {"task": "digits"},
    ],
)
def test_one_thing_that_differs_is_enough_to_keep_them_apart(changes):
    rows = reported_rows(in_its_regime(MMFUSER, **changes))
    assert not any(row["comparable"] for row in rows)


@pytest.mark.usefixtures("without_figures")
def test_a_number_whose_encoder_or_language_model_is_not_known_is_never_comparable():
    for unknown in [one for one in reported() if not (one.reader and one.encoder)]:
        (table,) = in_its_regime(unknown)
        assert not unknown.comparable(table.condition)


@pytest.mark.usefixtures("without_figures")
def test_the_order_is_that_of_the_sources_and_not_of_the_scores():
    methods = ("mmfuser", "penultimate", "dense_connector-dci", "mema")
    text = reported_section(tables(*(spec(name, "digits", 0) for name in methods)))
    assert "rank nothing" in text
    numbers = [one for one in reported() if one.ours in methods]
    shown = [text.index(f"Given by {one.given_by} ({one.evidence}): {one.source}")
             for one in numbers if one.base_model == "LLaVA-1.5-13B"]  # fmt: skip
    assert shown == sorted(shown)
    part = text.split("images/eval-res.png")[2].split("###")[0]
    rows = [line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")]
    assert rows == ["method", "LLaVA-1.5", "MMFuser"]


@pytest.mark.usefixtures("without_figures")
def test_a_folder_without_a_published_method_has_no_such_section(tmp_path):
    with Store.create(tmp_path) as store:
        put(store, spec("my_mix", "digits", 0), 0.5)
    assert reported_section(Results.open(tmp_path).tables) == ""
    write_report(tmp_path)
    assert not list((tmp_path / "report" / "tables").glob("reported.*"))


@pytest.mark.usefixtures("without_figures")
def test_the_report_has_the_table_in_all_formats(tmp_path):
    with Store.create(tmp_path) as store:
        put(store, spec("mmfuser", "digits", 0), 0.5)
    page = write_report(tmp_path).page.read_text()
    part = page.split("## Published numbers")[1].split("\n## ")[0]
    assert "nothing published can be compared" in part and "| MMFuser" in part
    tables = tmp_path / "report" / "tables"
    assert (tables / "reported.csv").read_text().count("\n") == len(reported()) + 1
    text = (tables / "reported.tex").read_text()
    assert "78.5" not in text and "79.1" in text and text.count("{") == text.count("}")
