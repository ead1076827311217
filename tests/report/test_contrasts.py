"""From records on disk to `contrasts.csv`: what is compared, what is decided, what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from toy_records import CODE
from toy_suite import (
    correlated,
    numbers,
    put_task,
    quick_disk,
    read,
    rows,
    section,
    the,
    write_suite,
)

from fusionbench.api.errors import UserError
from fusionbench.records.history import Request
from fusionbench.records.pairs import Results
from fusionbench.records.scores import INSENSITIVE
from fusionbench.records.store import Store
from fusionbench.report.build import ReportOptions, write_report
from fusionbench.report.contrasts import resolved
from fusionbench.stats.crossed import compare, crossed_t, t_over_seeds
from fusionbench.stats.groups import TaskScores
from fusionbench.stats.suite import sum_over_tasks
from fusionbench.stats.verdicts import benjamini_hochberg, holm
from fusionbench.study.contrasts import Contrast

pytestmark = pytest.mark.usefixtures("without_figures")

TASKS = ("digits", "textile", "scenes_count", "scenes_text", "easy_vqa")
SHARES = {"penultimate": 0.5, "repeat": 0.5, "mema": 0.7, "mema-readout": 0.52, "concat": 0.51}


def suite(shares=SHARES, seeds=6, items=150, seed=1):
    rng = np.random.default_rng(seed)
    by_task = {task: correlated(rng, shares, seeds=seeds, items=items) for task in TASKS}
    return {method: {task: by_task[task][method] for task in TASKS} for method in shares}


SUITE = suite()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("results"), SUITE)


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    return rows(folder, tmp_path_factory.mktemp("report"))


def without(row, *columns):
    return {key: value for key, value in row.items() if key not in columns}


def plain(*values):
    return [float(value) for value in values]


def difference(method, reference, task):
    return SUITE[method][task].astype(float) - SUITE[reference][task]


def test_a_task_row_is_the_crossed_t_of_the_outcomes_on_disk(found):
    row = the(found, scope="task", name="digits", method="mema", baseline="penultimate")
    d = difference("mema", "penultimate", "digits")
    estimate, runs = crossed_t(compare(d)), t_over_seeds(d.mean(axis=-1))
    assert numbers(row, "delta", "low", "high") == pytest.approx(
        plain(estimate.value, *estimate.interval()), abs=1e-6
    )
    assert numbers(row, "testset_low", "testset_high") == pytest.approx(
        plain(*runs.interval()), abs=1e-6
    )
    assert numbers(row, "se", "nu") == pytest.approx(plain(estimate.se, estimate.nu), rel=1e-7)
    assert float(row["p_baseline"]) == pytest.approx(estimate.p_value(), rel=1e-7)
    assert (row["n_seeds"], row["n_examples"], row["kind"]) == ("6", "150", "followup")


def test_the_suite_row_adds_the_tasks_and_needs_both_references(found):
    row = the(found, scope="suite", method="mema")
    tests = []
    for reference in ("penultimate", "repeat"):
        parts = [
            TaskScores(values=difference("mema", reference, task), groups=np.arange(150) + 150 * i,
                       weight=1 / (len(TASKS) * 0.75))
            for i, task in enumerate(TASKS)
        ]  # fmt: skip
        tests.append(sum_over_tasks(parts))
    assert numbers(row, "delta", "se") == pytest.approx(
        plain(tests[0].value, tests[0].se), abs=1e-6
    )
    assert numbers(row, "control_delta") == pytest.approx(plain(tests[1].value), abs=1e-6)
    assert float(row["p"]) == pytest.approx(max(float(test.p_value()) for test in tests), rel=1e-6)
    assert row["control"] == "repeat" and row["verdict"] == "better"
    assert numbers(row, "p_baseline", "p_control") == pytest.approx(
        [float(test.p_value()) for test in tests], rel=1e-6
    )


def test_one_method_of_a_family_is_planned_and_the_family_is_corrected(found):
    planned = [row for row in found if row["kind"] == "planned"]
    assert [row["method"] for row in planned] == ["mema", "concat"]
    raw = np.array([float(row["p"]) for row in planned])
    assert [float(row["p_adjusted"]) for row in planned] == pytest.approx(holm(raw), rel=1e-6)
    followups = [row for row in found if row["kind"] == "followup"]
    assert len(followups) == 2 * len(TASKS) and {row["family"] for row in followups} == {"10"}
    raw = np.array([float(row["p"]) for row in followups])
    assert [float(row["p_adjusted"]) for row in followups] == pytest.approx(holm(raw), rel=1e-6)


def test_what_nobody_planned_is_exploratory_and_bears_no_verdict(found):
    others = [row for row in found if row["kind"] == "exploratory"]
    assert {row["method"] for row in others} == {"repeat", "mema", "mema-readout", "concat"}
    assert {row["verdict"] for row in others} <= {"higher", "lower", "open"}
    assert {(row["scope"], row["name"]) for row in others if row["method"] == "mema"} == {
        ("group", "fine")
    }


def test_better_than_the_baseline_but_not_than_the_control_is_no_better(tmp_path):
    # The control carries what the method gained: more parameters, no new information.
    outcomes = suite({"penultimate": 0.5, "repeat": 0.7, "concat": 0.7})
    row = the(rows(write_suite(tmp_path / "r", outcomes), tmp_path / "o"), kind="planned")
    assert float(row["p_baseline"]) < 1e-6 < 0.05 < float(row["p_control"])
    assert row["verdict"] in ("undecided", "equivalent") and float(row["p"]) > 0.05


def test_a_control_that_was_not_run_leaves_the_question_open(tmp_path):
    outcomes = suite({"penultimate": 0.5, "concat": 0.7})
    row = the(rows(write_suite(tmp_path / "r", outcomes), tmp_path / "o"), kind="planned")
    assert row["reason"] == "control repeat was not run"
    assert row["p"] == row["p_adjusted"] == row["verdict"] == "" and float(row["delta"]) > 0


def test_without_any_control_the_baseline_decides_and_the_report_says_so(tmp_path):
    reason = "none: the layers are joined only inside the encoder"
    outcomes = suite({"penultimate": 0.5, "mrla": 0.7})
    control = {"mrla": reason, "penultimate": "none: it is a baseline itself"}.get
    written = write_suite(tmp_path / "r", outcomes, control=control)
    row = the(rows(written, tmp_path / "o"), kind="planned")
    assert row["verdict"] == "better" and row["control"] == ""
    assert float(row["p"]) == float(row["p_baseline"])
    write_report(written, tmp_path / "o")
    assert "none exists" in section(tmp_path / "o", "contrasts")


def test_the_contrasts_of_the_study_replace_the_default_ones(tmp_path):
    study = {
        "contrasts": [{"method": "concat", "baseline": "mema-readout", "name": "wide or deep"}],
        "margins": {"suite": 30.0, "task": 40.0},
    }
    found = rows(write_suite(tmp_path / "r", SUITE, study=study), tmp_path / "o")
    planned = the(found, kind="planned")
    assert planned["method"] == "concat" and planned["baseline"] == "mema-readout"
    assert planned["contrast"] == "wide or deep" and planned["margin"] == "0.300000"
    assert planned["verdict"] == "equivalent"
    assert the(found, kind="followup", name="digits")["margin"] == "0.400000"
    assert the(found, scope="suite", method="concat", baseline="penultimate")["kind"] == (
        "exploratory"
    )


def test_a_contrast_on_a_group_takes_its_tasks_only(tmp_path):
    groups = {"digits": "fine", "textile": "fine"}
    with quick_disk(), Store.create(tmp_path / "r") as store:
        for method, tasks in SUITE.items():
            for task, table in tasks.items():
                put_task(store, method, task, table, group=groups.get(task, "semantic"))
        study = {"baseline": "penultimate", "contrasts": [{"method": "mema", "over": "fine"}]}
        store.history.add(Request(study=study, labels=tuple(SUITE), tasks=TASKS))
    found = rows(tmp_path / "r", tmp_path / "o")
    row = the(found, kind="planned")
    assert (row["scope"], row["name"], row["n_examples"]) == ("group", "fine", "300")
    assert {row["name"] for row in found if row["kind"] == "followup"} == set(groups)


def test_a_contrast_on_a_group_of_which_no_task_counts_is_not_one_on_the_suite(tmp_path):
    (table,) = Results.open(write_suite(tmp_path / "r", SUITE)).tables
    asked = Contrast(method="mema", baseline="penultimate", over="semantic")
    for mark, why in (("", ""), (INSENSITIVE, "no task of the group semantic counts")):
        first = replace(table.tasks[0], group="semantic", mark=mark)
        found = replace(table, tasks=(first, *table.tasks[1:]))
        assert resolved(found, asked)[1] == why


def test_swapping_method_and_baseline_negates_every_difference_and_keeps_p(folder, tmp_path):
    one = rows(folder, tmp_path / "a", baseline="mema")
    other = rows(folder, tmp_path / "b", baseline="penultimate")
    compared = 0
    for row in one:
        if row["method"] != "penultimate":
            continue
        twin = the(other, scope=row["scope"], name=row["name"], method="mema")
        assert float(row["delta"]) == -float(twin["delta"]) or row["delta"] == twin["delta"]
        assert numbers(row, "low", "high", "testset_low", "testset_high") == [
            -value for value in numbers(twin, "high", "low", "testset_high", "testset_low")
        ]
        same = ("se", "nu", "p_baseline", "n_seeds", "n_examples", "discordant_images")
        assert [row[key] for key in same] == [twin[key] for key in same]
        compared += 1
    assert compared == 2 + len(TASKS)


def test_adding_a_method_changes_no_estimate_variance_nu_or_raw_p(found, tmp_path):
    more = SUITE | {"zoom": suite({"zoom": 0.6}, seed=9)["zoom"]}
    grown = rows(write_suite(tmp_path / "r", more), tmp_path / "o")
    raw = (
        "delta", "low", "high", "testset_low", "testset_high", "se", "nu", "p", "p_baseline",
        "p_control", "control_delta", "mde_alone", "n_seeds", "n_examples", "p_equivalent",
    )  # fmt: skip
    for row in found:
        key = {name: row[name] for name in ("scope", "name", "method", "baseline", "kind")}
        assert [the(grown, **key)[name] for name in raw] == [row[name] for name in raw]
    assert the(grown, kind="planned", method="mema")["family"] == "3"


def test_with_another_baseline_nothing_is_planned(folder, tmp_path):
    found = rows(folder, tmp_path, baseline="concat")
    assert {row["kind"] for row in found} == {"exploratory"}
    write_report(folder, tmp_path, ReportOptions(baseline="concat"))
    page = section(tmp_path, "contrasts")
    assert "The baseline concat is not the study's (penultimate): nothing here is planned" in page
    with pytest.raises(UserError, match="no method 'concta'; did you mean 'concat'"):
        rows(folder, tmp_path, baseline="concta")


@pytest.mark.thorough
def test_a_plan_that_changed_between_two_runs_is_said_aloud(tmp_path):
    written = write_suite(tmp_path / "r", SUITE)
    store = Store.open(written)
    assert "Changed after" not in write_report(written, tmp_path / "a").page.read_text()
    last = store.history.requests()[-1]
    store.history.add(replace(last, study={**last.study, "contrasts": [{"method": "mema"}]}))
    page = write_report(written, tmp_path / "b").page.read_text()
    assert "**Changed after the first run**: contrasts of the study" in page


def test_a_missing_run_leaves_its_pair_out_of_its_own_contrasts_alone(folder, found, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    gone = next(r for r in Store.open(copy).records()
                if (r.label, r.spec.task, r.spec.seed) == ("mema", "digits", 2))  # fmt: skip
    (copy / "cells" / f"{gone.id}.json").unlink()
    less = rows(copy, tmp_path / "o")
    assert the(less, name="digits", method="mema")["n_seeds"] == "5"
    assert the(less, scope="suite", method="mema")["n_seeds"] == "5"
    for row in less:
        if row["method"] != "mema" and row["kind"] != "planned":
            key = {name: row[name] for name in ("scope", "name", "method", "baseline", "kind")}
            assert without(row, "p_adjusted", "verdict", "p_equivalent_adjusted") == without(
                the(found, **key), "p_adjusted", "verdict", "p_equivalent_adjusted"
            )


def test_a_suite_without_one_of_its_tasks_is_refused_not_averaged(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    for record in Store.open(copy).records():
        if (record.label, record.spec.task) == ("concat", "textile"):
            (copy / "cells" / f"{record.id}.json").unlink()
    found = rows(copy, tmp_path / "o")
    row = the(found, kind="planned", method="concat")
    assert row["delta"] == row["p"] == row["verdict"] == ""
    assert row["reason"] == "4 of 5 tasks: concat on textile was not run"
    # The question still counts in its family: a failed cell makes no other p smaller.
    mema = the(found, kind="planned", method="mema")
    assert mema["family"] == "2"
    assert float(mema["p_adjusted"]) == pytest.approx(2 * float(mema["p"]), rel=1e-6)
    explored = [row for row in found if row["kind"] == "exploratory"]
    silent = [row for row in explored if not row["p"]]
    assert silent and {row["family"] for row in explored} == {str(len(explored))}
    q = benjamini_hochberg(np.array([float(row["p"] or 1) for row in explored]))
    stated = [float(row["p_adjusted"] or 1) for row in explored]
    assert stated == pytest.approx(np.where([not row["p"] for row in explored], 1, q), rel=1e-6)
    main = rows(copy, tmp_path / "o", table="main")
    missing = the(main, method="concat", task="textile")
    assert missing["status"] == "not run" and missing["mean"] == missing["delta"] == ""
    summary = rows(copy, tmp_path / "o", table="summary")
    assert the(summary, method="concat", aggregate="suite")["status"] == "4 of 5 tasks"
    assert the(summary, method="concat", aggregate="suite")["score"] == ""


def test_cells_scored_on_other_examples_are_not_paired(tmp_path):
    with quick_disk(), Store.create(tmp_path / "r") as store:
        for method, tasks in SUITE.items():
            for task, table in tasks.items():
                other = method == "mema" and task == "digits"
                images = range(1000, 1150) if other else None
                put_task(store, method, task, table, images=images)
    found = rows(tmp_path / "r", tmp_path / "o")
    row = the(found, scope="task", name="digits", method="mema")
    assert row["delta"] == "" and row["reason"] == "scored on different examples of digits"
    assert the(found, scope="task", name="digits", method="concat")["delta"]


def test_with_three_seeds_no_test_is_printed(tmp_path):
    written = write_suite(tmp_path / "r", suite(seeds=3))
    write_report(written, tmp_path / "o")
    found = read(tmp_path / "o", "contrasts")
    tests = ("p", "p_adjusted", "verdict", "mde", "p_baseline", "p_control", "testset_p",
             "new_tasks_p_adjusted", "p_equivalent")  # fmt: skip
    assert found and all(row[name] == "" for row in found for name in tests)
    page = section(tmp_path / "o", "contrasts")
    assert "No test is printed and no verdict is given: 3 runs per cell" in page
    main = read(tmp_path / "o", "main")
    assert all(row["tied"] == row["best"] == row["p"] == "" for row in main)
    assert {row["interval"] for row in main} == {"runs"}
    assert "**" not in section(tmp_path / "o", "main")


@pytest.mark.thorough
def test_the_smallest_possible_p_on_this_test_set_is_printed(tmp_path):
    written = write_suite(tmp_path / "r", suite(seeds=5))
    row = the(rows(written, tmp_path / "o"), kind="planned", method="mema")
    assert row["testset_smallest_p"] == "0.0625" and float(row["testset_p"]) >= 0.0625
    write_report(written, tmp_path / "o")
    page = section(tmp_path / "o", "contrasts")
    assert "its smallest possible value is 0.062, so that nothing can reach 0.05" in page


@pytest.mark.thorough
def test_a_claim_about_new_tasks_needs_five_families(found, tmp_path):
    row = the(found, kind="planned", method="mema")
    assert numbers(row, "new_tasks_delta") == pytest.approx(numbers(row, "delta"), abs=2e-6)
    assert float(row["new_tasks_low"]) < float(row["new_tasks_delta"])
    siblings = {task: "scenes" if task.startswith("scenes") else task for task in TASKS}
    with quick_disk(), Store.create(tmp_path / "r") as store:
        for method, tasks in SUITE.items():
            for task, table in tasks.items():
                put_task(store, method, task, table, task_family=siblings[task])
    write_report(tmp_path / "r", tmp_path / "o")
    row = the(read(tmp_path / "o", "contrasts"), kind="planned", method="mema")
    assert row["new_tasks_low"] == row["new_tasks_p_adjusted"] == ""
    page = section(tmp_path / "o", "contrasts")
    assert "at least 5 task families, got 4" in page


@pytest.mark.thorough
def test_a_method_that_reads_the_answers_enters_no_aggregate(tmp_path):
    outcomes = suite(SHARES | {"tgif-leaky": 0.95})
    leaky = lambda method: method == "tgif-leaky"  # noqa: E731
    written = write_suite(tmp_path / "r", outcomes, reads_answers=leaky)
    found = rows(written, tmp_path / "o")
    assert {row["scope"] for row in found if row["method"] == "tgif-leaky"} == {"task"}
    assert {row["kind"] for row in found if row["method"] == "tgif-leaky"} == {"exploratory"}
    main = rows(written, tmp_path / "o", table="main")
    rivals = [row for row in main if row["task"] == "digits" and row["best"] == "true"]
    assert [row["method"] for row in rivals] == ["mema"]
    suite_row = the(rows(written, tmp_path / "o", table="summary"),
                    method="tgif-leaky", aggregate="suite")  # fmt: skip
    assert suite_row["status"] == "reads the answers" and suite_row["score"] == ""


@pytest.mark.thorough
def test_seeds_shared_by_all_tasks_are_not_counted_once_per_task(tmp_path):
    rng = np.random.default_rng(4)
    luck = rng.standard_normal((8, 1))
    made = {
        method: {
            task: (rng.standard_normal((8, 150)) + unstable * luck > 0).astype(np.float32)
            for task in TASKS
        }
        for method, unstable in (("penultimate", 0.0), ("repeat", 0.0), ("concat", 0.5))
    }
    apart = rows(write_suite(tmp_path / "a", made), tmp_path / "x")
    shared = rows(write_suite(tmp_path / "b", made, seed_scope="suite"), tmp_path / "y")
    ours, wrong = (float(the(one, kind="planned")["se"]) for one in (shared, apart))
    # A lucky run is lucky on all five tasks: adding variances misses four fifths of it.
    assert ours > 1.5 * wrong


def test_questions_about_one_image_are_one_item(tmp_path):
    rng = np.random.default_rng(5)
    base = {m: rng.random((6, 40)) < 0.6 for m in ("penultimate", "repeat", "concat")}
    four = {
        m: {t: np.repeat(v, 4, axis=1).astype(np.float32) for t in TASKS} for m, v in base.items()
    }
    images = {task: [f"{task}-{i}" for i in np.repeat(np.arange(40), 4)] for task in TASKS}
    grouped = rows(write_suite(tmp_path / "a", four, images=images), tmp_path / "x")
    single = {m: {t: v.astype(np.float32) for t in TASKS} for m, v in base.items()}
    plain = rows(write_suite(tmp_path / "b", single), tmp_path / "y")
    same = ("delta", "low", "high", "se", "nu", "p", "discordant_images")
    for row in plain:
        key = {name: row[name] for name in ("scope", "name", "method", "kind")}
        assert [row[name] for name in same] == [the(grouped, **key)[name] for name in same]


@pytest.mark.thorough
def test_records_of_mixed_and_uncommitted_code_are_marked_in_the_tables(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "r")
    with quick_disk():
        changed = CODE | {"commit": "beef1234", "dirty": True}
        put_task(Store.open(copy), "concat", "digits", SUITE["concat"]["digits"][:1], seeds=[7],
                 provenance={"code": changed})  # fmt: skip
    write_report(copy, tmp_path / "o")
    row = the(read(tmp_path / "o", "main"), method="concat", task="digits")
    assert row["code"] == "beef123 c0ffee" and row["uncommitted"] == "true"
    page = section(tmp_path / "o", "main")
    assert "concat ‡" in page and "uncommitted code" in page
    assert "**Mixed code**" in section(tmp_path / "o", "coverage")


def test_a_group_of_one_task_is_on_the_scale_of_the_suite(tmp_path):
    one = {method: {"digits": tasks["digits"]} for method, tasks in SUITE.items()}
    found = rows(write_suite(tmp_path / "r", one), tmp_path / "o")
    for column in ("delta", "low", "high", "testset_low", "se"):
        task, suite = (
            float(the(found, scope=scope, method="mema", baseline="penultimate")[column])
            for scope in ("task", "suite")
        )
        assert suite == pytest.approx(task / 0.75, abs=2e-6)
    summary = rows(tmp_path / "r", tmp_path / "o", table="summary")
    scores = {row["method"]: float(row["score"]) for row in summary if row["aggregate"] == "suite"}
    delta = float(the(found, scope="suite", method="mema")["delta"])
    assert scores["mema"] - scores["penultimate"] == pytest.approx(delta, abs=2e-6)
