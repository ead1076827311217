"""Several conditions in one folder are told apart by exactly what differs, in every output."""

import csv
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from toy_records import put, spec
from toy_suite import put_task, quick_disk, read, section, the, write_suite

from fusionbench.records.history import Request
from fusionbench.records.pairs import Results
from fusionbench.records.scores import score_tables
from fusionbench.records.store import Store
from fusionbench.report.build import ReportOptions, write_report
from fusionbench.report.coverage import dead, one_answer, scored_alike
from fusionbench.report.main_table import token_counts, token_lines

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
    summary = section(paths.page.parent, "summary")
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


def test_what_a_request_lacks_is_counted_in_its_own_condition(tmp_path):
    folder = folder_with(tmp_path / "r", {})
    decay = replace(BUDGET, weight_decay=0.5)
    with quick_disk(), Store.create(folder) as store:
        put(store, spec("last", "digits", 0, budget=decay), 0.5, 7)
        study = {"encoder": "nano", "budget": asdict(decay), "seeds": 3}
        labels = ("last", "penultimate")
        store.history.add(Request(study=study, labels=labels, tasks=("digits",)))
    paths = write_report(folder, tmp_path / "o", ReportOptions(formats=("md", "csv")))
    found = {
        (row["method"], "0.5" in row["condition"]): row["not_run"]
        for row in rows(paths.tables / "coverage.csv")
    }
    assert found == {("last", False): "0", ("penultimate", False): "0", ("last", True): "2"}
    page = re.sub(" +", " ", section(tmp_path / "o", "coverage"))
    assert "| last | 3 | 0 | 0 | 2 |" in page and "| penultimate | 2 | 0 | 0 | 3 |" in page


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


# Methods that see nothing are found, from recorded counts or from outcomes alone.

RNG = np.random.default_rng(4)
ANSWERS = RNG.permutation(np.repeat(np.arange(4), (40, 30, 20, 10)))
CHANCE = float(((np.bincount(ANSWERS) / len(ANSWERS)) ** 2).sum())


def constant(*classes: int) -> np.ndarray:
    return np.array([(ANSWERS == each).astype(float) for each in classes])


@pytest.mark.parametrize("classes", [(0, 0, 0, 0), (0, 1, 0, 2), (3, 3)])
def test_runs_that_always_give_one_answer_are_found(classes):
    assert one_answer(list(constant(*classes)), chance=CHANCE)


def test_runs_that_guess_or_see_something_are_not():
    guesses = RNG.integers(0, 4, (4, len(ANSWERS)))
    assert not one_answer(list((guesses == ANSWERS).astype(float)), chance=CHANCE)
    one_wrong = constant(0, 0)
    one_wrong[0, np.flatnonzero(ANSWERS == 0)[0]] = 0
    assert not one_answer(list(one_wrong), chance=CHANCE)
    # Right everywhere, in every run: equal outcomes, but more than one class.
    assert not one_answer([np.ones(len(ANSWERS))] * 4, chance=CHANCE)


def test_too_little_is_known_of_one_run_of_no_right_answer_and_of_partial_credit():
    assert not one_answer(list(constant(0)), chance=CHANCE)
    assert not one_answer([np.zeros(8)] * 4, chance=CHANCE)
    assert not one_answer([np.full(8, 0.25)] * 4, chance=CHANCE)


def test_recorded_counts_of_answers_decide_where_they_are(tmp_path):
    # Outcomes of one class, but two answers: the second was wrong wherever it was given.
    suite = {"blind": {"digits": constant(0, 1, 0, 2)}, "one_run": {"digits": constant(0)}}
    facts = {"chance": CHANCE}
    write_suite(tmp_path / "two", suite, distinct=2, **facts)
    write_suite(tmp_path / "one", suite, distinct=1, **facts)
    write_suite(tmp_path / "old", suite, **facts)
    said = {}
    for name in ("two", "one", "old"):
        results = Results.open(tmp_path / name)
        said[name] = [line.partition(":")[0] for line in dead(results, results.tables[0])]
    assert said == {"two": [], "one": ["- blind", "- one_run"], "old": ["- blind"]}


def test_runs_that_collapse_among_others_are_counted(tmp_path):
    right = (RNG.random((4, len(ANSWERS))) < 0.7).astype(float)
    with quick_disk(), Store.create(tmp_path) as store:
        for seed, answers in enumerate((4, 1, 4, 1)):
            put_task(
                store, "mema", "digits", right[seed : seed + 1], seeds=[seed], distinct=answers
            )
    results = Results.open(tmp_path)
    (line,) = dead(results, results.tables[0])
    assert line.startswith("- mema: dead on digits (2 of 4 runs):")


def test_the_report_names_what_is_alike_and_what_is_dead(tmp_path):
    sees = (RNG.random((4, len(ANSWERS))) < 0.7).astype(float)
    suite = {
        "penultimate": {"digits": sees},
        "copy_of_it": {"digits": sees},
        "blind": {"digits": constant(0, 1, 0, 2)},
    }
    write_suite(tmp_path, suite, chance=CHANCE)
    results = Results.open(tmp_path)
    (table,) = results.tables
    (line,) = dead(results, table)
    assert line.startswith("- blind: dead on digits")
    (same,) = scored_alike(table)
    assert "copy_of_it" in same and "penultimate" in same
    write_report(tmp_path)
    page = (tmp_path / "report" / "report.md").read_text()
    assert line in page and same.strip() in page


# Methods that change the number of tokens are marked, with the controls of as many tokens.

TOKENS = {"penultimate": 16, "mix": 16, "packer": 4, "packer-like": 4, "dense": 9}
CONTROLS = {"packer": "packer-like", "mix": "repeat", "dense": "repeat"}


def suite(methods=tuple(TOKENS)):
    draw = np.random.default_rng(2)
    return {name: {"digits": (draw.random((4, 50)) < 0.6).astype(float)} for name in methods}


def lines(folder, baseline="penultimate"):
    (table,) = Results.open(folder).tables
    return list(token_lines(table, token_counts(table, baseline)))


@pytest.fixture
def folder(tmp_path):
    return write_suite(
        tmp_path / "results",
        suite(),
        tokens=lambda name: TOKENS[name],
        control=lambda name: CONTROLS.get(name, "none: it is a control itself"),
    )


def test_the_mark_stands_for_another_number_of_tokens_and_names_controls_of_as_many(
    folder, tmp_path
):
    assert lines(folder)[1:] == [
        "- 4 tokens: `packer`; controls with as many: `packer-like`",
        "- 9 tokens: `dense`; controls with as many: none here",
    ]
    write_report(folder, tmp_path / "out")
    page = section(tmp_path / "out", "main")
    assert all(line in page for line in lines(folder))
    marked = {name for name in TOKENS if f"| {name} §" in page}
    assert marked == {"packer", "packer-like", "dense"}
    assert r"packer \S{}" in (tmp_path / "out" / "tables" / "main.tex").read_text()
    found = read(tmp_path / "out", "main")
    assert {name: int(the(found, method=name)["tokens"]) for name in TOKENS} == TOKENS


def test_records_without_counts_get_no_mark(tmp_path):
    old = write_suite(tmp_path / "old", suite())
    assert lines(old) == []
    write_report(old, tmp_path / "out")
    assert "§" not in section(tmp_path / "out", "main")
    # An old baseline says nothing about new records, and an old method is not marked beside them.
    part = write_suite(tmp_path / "a", suite(), tokens=lambda name: 4 * (name == "packer"))
    assert lines(part) == []
    part = write_suite(tmp_path / "b", suite(), tokens=lambda name: 16 * (name == "penultimate"))
    assert lines(part) == []


def test_without_penultimate_the_baseline_of_the_study_is_the_measure(tmp_path):
    rest = suite(("mix", "packer"))
    other = write_suite(tmp_path / "other", rest, tokens=lambda name: TOKENS[name])
    assert "than `mix` (16)" in lines(other, "mix")[0]
    assert lines(other, "absent") == []
