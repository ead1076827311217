"""Minimum detectable effects: with the seeds at hand, with more, and in the limit."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from toy_records import record, spec
from toy_suite import items, outcomes, study

from fusionbench.api.errors import UserError
from fusionbench.cli.reports import diff, power
from fusionbench.records.history import Request
from fusionbench.records.pairs import Results, minus, task_weights
from fusionbench.records.store import Store
from fusionbench.report.diff import (
    Folder,
    changes,
    identity_changes,
    matched,
    origin_changes,
    shifts,
)
from fusionbench.report.diff import page as diff_page
from fusionbench.report.power import (
    AT_SEEDS,
    Goal,
    PowerOptions,
    long_rows,
    page,
    planned,
    power_estimate,
)
from fusionbench.report.tables import comma_separated
from fusionbench.study.contrasts import Contrast
from fusionbench.study.study import QUICK, as_plain

GAINS = {"penultimate": 0.0, "repeat": 0.0, "mema": 0.1}
ONE = Goal(effect=5.0, contrasts=1, pilot=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results.open(study(tmp_path_factory.mktemp("study") / "results", GAINS, seeds=5))


def look(results, goal=ONE, over="suite"):
    (table,) = results.tables
    names = [task.name for task in table.tasks]
    tasks = range(len(names)) if over == "suite" else [names.index(over)]
    contrast = Contrast(method="mema", baseline="penultimate")
    return power_estimate(
        results, table, contrast, "penultimate", list(tasks), over=over, goal=goal
    )


@pytest.mark.parametrize("over", ["suite", "digits"])
def test_what_is_found_now_is_the_mde_of_the_very_estimate_that_is_tested(results, over):
    (table,) = results.tables
    found = look(results, replace(ONE, contrasts=7), over)
    tasks = list(range(3)) if over == "suite" else [[t.name for t in table.tasks].index(over)]
    rows = table.methods.index("mema"), table.methods.index("penultimate")
    estimate = results.contrast(table, minus(*rows), tasks, task_weights(table, tasks)).estimate
    assert found.mde == pytest.approx(100 * float(estimate.mde(0.05 / 7)))


@pytest.mark.parametrize("over", ["suite", "digits"])
@pytest.mark.parametrize("pilot", [False, True])
def test_more_seeds_find_more_down_to_a_floor_and_the_needed_number_is_the_first(
    results, over, pilot
):
    goal = replace(ONE, pilot=pilot)
    found = look(results, goal, over)
    assert list(found.mde_at) == sorted(found.mde_at, reverse=True)
    assert 0 <= found.floor < found.mde_at[-1]
    effect = (found.mde_at[0] + found.mde_at[1]) / 2
    needed = look(results, replace(goal, effect=effect), over).needed
    assert AT_SEEDS[0] < needed <= AT_SEEDS[1]
    below = look(results, replace(goal, effect=found.floor * 0.99), over)
    assert below.needed is None


def test_a_cautious_plan_never_needs_fewer_seeds_and_more_contrasts_never_help(results):
    for over in ("suite", "digits", "textile", "easy_vqa"):
        plain, cautious = look(results, ONE, over), look(results, replace(ONE, pilot=True), over)
        many = look(results, replace(ONE, contrasts=12), over)
        for one, other in ((plain, cautious), (plain, many)):
            assert all(a <= b for a, b in zip(one.mde_at, other.mde_at, strict=True))
            assert (one.needed or 999) <= (other.needed or 999)


@pytest.mark.slow
def test_a_pilot_of_five_seeds_foretells_the_mde_of_ten_within_its_own_uncertainty(tmp_path):
    ratios = []
    for draw in range(8):
        pilot = study(tmp_path / f"p{draw}", GAINS, seeds=5, draw=draw, count=120)
        real = study(tmp_path / f"r{draw}", GAINS, seeds=10, draw=100 + draw, count=120)
        ahead = look(Results.open(pilot)).mde_at[AT_SEEDS.index(10)]
        ratios.append(ahead / look(Results.open(real)).mde)
    # An MDE from 5 seeds scatters by -35 to +45 %; over 8 pilots the middle must be near.
    assert 0.75 < np.median(ratios) < 1.33


def test_a_floor_above_the_effect_means_never_and_the_page_says_so(results):
    plans = planned(results, PowerOptions(effect=0.5))
    text = page(plans, PowerOptions(effect=0.5), "results")
    assert "not reachable" in text and "never" not in text and "not reachable (" not in text
    high = [one for plan in plans for one in plan.estimates if one.floor > 0.5]
    assert high and all(one.needed is None for one in high)


def test_the_harder_of_baseline_and_control_counts(tmp_path):
    folder = study(tmp_path / "results", GAINS, seeds=5)
    store = Store.open(folder)
    declared = replace(QUICK, contrasts=({"method": "mema", "control": "repeat"},))
    store.history.add(Request(study=as_plain(declared), labels=tuple(GAINS), tasks=("digits",)))
    (plan,) = planned(Results.open(folder), PowerOptions())
    suite = [one for one in plan.estimates if one.over == "suite"]
    assert [one.reference for one in suite] == ["penultimate", "repeat"]
    assert plan.goal.contrasts == 1
    (hardest,) = [one for one in plan.hardest if one.over == "suite"]
    assert hardest.mde == max(one.mde for one in suite)
    assert hardest.reference == "penultimate and repeat"


def test_contrasts_of_one_method_stay_apart_and_the_correction_counts_those_that_are_listed(
    tmp_path,
):
    gains = GAINS | {f"other{n}": 0.1 for n in range(14)}
    folder = study(tmp_path / "results", gains, seeds=4)
    store = Store.open(folder)
    both = ({"method": "mema"}, {"method": "mema", "baseline": "repeat"})
    declared = replace(QUICK, contrasts=both)
    store.history.add(Request(study=as_plain(declared), labels=tuple(gains), tasks=("digits",)))
    (plan,) = planned(Results.open(folder), PowerOptions())
    suite = [one for one in plan.hardest if one.over == "suite"]
    assert [one.reference for one in suite] == ["penultimate", "repeat"]
    assert [row["baseline"] for row in long_rows([plan])[::5]] == ["penultimate", "repeat"]
    (wide,) = planned(Results.open(folder), PowerOptions(baseline="repeat"))
    assert wide.goal.contrasts == len(gains) - 1 > 12


def test_two_names_of_one_function_are_left_out_and_named(tmp_path):
    folder = study(tmp_path / "results", {"penultimate": 0.0, "mema": 0.1}, seeds=4)
    store = Store.open(folder)
    for one in list(store.records()):
        if one.label == "penultimate":
            twin = replace(one.spec, method="twin")
            Store(folder).write(
                replace(one, spec=twin, label="twin"), store.outcomes(one), store.items(one)
            )
    (plan,) = planned(Results.open(folder), PowerOptions())
    assert plan.same == (("twin", "penultimate"),)
    assert {one.method for one in plan.estimates} == {"mema"}
    assert "`twin` as `penultimate`" in page([plan], PowerOptions(), "results")


def test_a_cell_that_is_missing_is_named_and_the_rest_is_still_planned(tmp_path):
    folder = study(tmp_path / "results", {"penultimate": 0.0, "mema": 0.1}, seeds=4)
    for one in list(Store.open(folder).records()):
        if (one.label, one.spec.task) == ("mema", "textile"):
            (folder / "cells" / f"{one.id}.json").unlink()
    (plan,) = planned(Results.open(folder), PowerOptions())
    assert any("mema on textile was not run" in gap for gap in plan.gaps)
    assert {one.over for one in plan.estimates} == {"digits", "easy_vqa"}


def test_the_command_writes_a_row_for_each_contrast_and_set_of_tasks(results, tmp_path):
    stream, out = io.StringIO(), tmp_path / "power.csv"
    wanted = PowerOptions(effect=2.0, methods=("mema",), pilot=True)
    assert power(results.store.folder, wanted, out=out, stream=stream) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["over"] for row in rows] == ["suite", "fine", "digits", "easy_vqa", "textile"]
    assert out.read_text() == comma_separated(long_rows(planned(results, wanted)))
    assert "| suite (3 tasks)" in stream.getvalue() and "upper 80 %" in stream.getvalue()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (PowerOptions(effect=0.0), "--effect must be positive"),
        (PowerOptions(baseline="penultimat"), "did you mean 'penultimate'?"),
        (PowerOptions(methods=("memma",)), "did you mean 'mema'?"),
        (PowerOptions(baseline="mema", methods=("mema",)), "nothing to compare"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_line(results, wanted, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        power(results.store.folder, wanted, out=None, stream=io.StringIO())


# Two folders: what differs in what was asked, what ran, where, and the scores.

DIFF_GAINS = {"penultimate": 0.0, "mema": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return study(tmp_path_factory.mktemp("study") / "a", DIFF_GAINS)


def compared(a, b):
    first, second = Results.open(a), Results.open(b)
    (sides,), left, right = matched(first.tables, second.tables)
    assert not left and not right
    return sides, {(one.method, one.over): one for one in shifts(first, second, sides)}


def text_of(a, b):
    return diff_page(*(Folder(name=n, results=Results.open(f)) for n, f in (("a", a), ("b", b))))[0]


def test_a_cell_without_outcomes_is_a_gap_of_its_task_and_the_rest_is_compared(folder, tmp_path):
    copy = study(tmp_path / "copy", DIFF_GAINS)
    store = Store(copy)
    cell = next(c for c in store.records() if (c.label, c.spec.task) == ("mema", "digits"))
    (copy / "cells" / f"{cell.id}.json").unlink()
    Store(copy).write(replace(cell, outcomes="", items=""))
    _, found = compared(folder, copy)
    said = "a cell on digits kept no outcomes of its examples"
    assert found["mema", "digits"].gap == said and said in found["mema", "suite"].gap
    assert found["mema", "textile"].measured.identical and said in text_of(folder, copy)


def test_a_folder_and_its_copy_do_not_differ(folder, tmp_path):
    copy = study(tmp_path / "copy", DIFF_GAINS)
    _, found = compared(folder, copy)
    assert all(one.measured.identical and one.answer.p is None for one in found.values())
    text = text_of(folder, copy)
    assert "36 of them are the same cell by their identity, of which 36 have equal scores" in text
    assert text.count("No difference.") == 2 and "±" not in text.split("| method")[1]


def test_one_identity_with_two_outcomes_is_pointed_out(folder, tmp_path):
    other = study(tmp_path / "other", DIFF_GAINS, draw=1)
    assert "**36 cells have one identity and two outcomes**" in text_of(folder, other)


def test_what_differs_in_identity_is_named_with_the_number_of_cells(folder, tmp_path):
    budget = replace(QUICK.budget, steps=61)
    other = study(tmp_path / "other", DIFF_GAINS, budget=budget, data="e" * 32, method_version=2)
    sides, _ = compared(folder, other)
    found = {one.what: (one.a, one.b, count) for one, count in identity_changes(sides.namesakes())}
    assert found == {
        "budget.steps": (str(QUICK.budget.steps), "61", 36),
        "data of the task": ("d" * 32, "e" * 32, 36),
        "version of the method": ("1", "2", 36),
    }
    batch = QUICK.budget.batch
    for steps in (QUICK.budget.steps, 61):
        assert f"{steps} steps of {batch}" in sides.title


def test_code_packages_and_machines_that_differ_are_named(folder, tmp_path):
    new = {"code": {"fusionbench": "0.1.0", "commit": "beef", "dirty": True},
           "hardware": {"device": "cuda:0"}, "method": "a-plugin 1.0"}  # fmt: skip
    other = study(tmp_path / "other", DIFF_GAINS, facts={"provenance": new})
    sides = [Folder(name=str(f), results=Results.open(f)).done for f in (folder, other)]
    found = {one.what: (one.a, one.b) for one in origin_changes(*sides)}
    assert found == {
        "code commit": ("c0ffee", "beef"),
        "code dirty": ("False", "True"),
        "hardware device": ("nothing", "cuda:0"),
        "methods from": ("nothing", "a-plugin 1.0"),
    }
    mixed = study(tmp_path / "other", {"last": 0.0}, facts={"provenance": new | {"code": {}}})
    sides = [Folder(name="", results=Results.open(f)).done for f in (folder, mixed)]
    found = {one.what: one.b for one in origin_changes(*sides)}
    assert found["code commit"] == "beef (36 cells)"


def test_what_was_asked_is_compared_key_by_key(tmp_path):
    folders = []
    for name, asked in (("a", QUICK), ("b", replace(QUICK, seeds=5, methods=("mema",)))):
        folders.append(study(tmp_path / name, {"mema": 0.0}))
        run = Request(study=as_plain(asked), labels=("mema",), tasks=("digits",), version="0.1.0")
        Store.open(folders[-1]).history.add(run)
    text = text_of(*folders).split("## What ran")[0]
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][
        2:
    ] == ["methods", "seeds"]


def test_a_planted_shift_is_found_and_turns_round_with_the_folders(folder, tmp_path):
    other = study(tmp_path / "other", {"penultimate": 0.0, "mema": 0.1})
    _, found = compared(folder, other)
    _, back = compared(other, folder)
    for over in ("suite", "digits", "textile", "easy_vqa"):
        one, two = found["mema", over], back["mema", over]
        assert float(one.measured.estimate.value) > 0.05 and one.answer.p_adjusted < 0.05
        assert float(two.measured.estimate.value) == pytest.approx(
            -float(one.measured.estimate.value)
        )
        assert two.answer.p == pytest.approx(one.answer.p)
        assert found["penultimate", over].measured.identical


def test_tasks_of_another_chance_are_named_and_in_no_mean_of_either_side(folder, tmp_path):
    other = study(tmp_path / "other", {"penultimate": 0.0, "mema": 0.1}, facts={"chance": 0.3})
    for sides in ((folder, other), (other, folder)):
        _, found = compared(*sides)
        assert ("mema", "suite") not in found and ("mema", "digits") in found
        assert "chance" in text_of(*sides).split("## Identity")[1].split("## Where")[0]


def test_with_three_seeds_no_test_is_printed(tmp_path):
    one = study(tmp_path / "a", DIFF_GAINS, seeds=3)
    two = study(tmp_path / "b", {"penultimate": 0.0, "mema": 0.1}, seeds=3)
    _, found = compared(one, two)
    assert all(shift.answer.p is shift.answer.p_adjusted is None for shift in found.values())
    assert "(q" not in text_of(one, two)


def test_only_examples_that_both_folders_have_are_paired_by_name(tmp_path):
    folders = {}
    for name, start in (("a", 0), ("b", 100)):
        with Store.create(tmp_path / name) as store:
            for seed in range(5):
                # The score of an example is told by its number: paired rightly, nothing differs.
                scores = ((np.arange(start, start + 300) + seed) % 3 == 0).astype(np.float32)
                cell = spec("mema", "digits", seed)
                names = items("digits", 300, start)
                store.write(record(cell, scores), scores, names)
        folders[name] = tmp_path / name
    _, found = compared(folders["a"], folders["b"])
    one = found["mema", "digits"]
    assert one.measured.identical and one.measured.examples == 200


def test_what_only_one_folder_has_is_listed_and_not_compared(folder, tmp_path):
    other = study(tmp_path / "b", {"mema": 0.0, "last": 0.0}, seeds=8, tasks=("digits",))
    with Store.create(other) as store:
        scores = outcomes("mema", "digits", 0, 0.0)
        cell = spec("mema", "digits", 0, encoder="dinov2-small")
        store.write(record(cell, scores), scores, items("digits"))
    text = text_of(folder, other)
    assert "- only in B: everything under dinov2-small" in text
    assert "- only in A (nano): methods penultimate" in text
    assert "- only in A (nano): tasks easy_vqa, textile" in text
    assert "- only in B (nano): methods last" in text
    assert "- only in B (nano): seeds 6, 7" in text


def test_runs_of_different_seeds_are_not_paired(tmp_path):
    folders = []
    for name, seeds in (("a", (0, 1, 2)), ("b", (3, 4, 5))):
        with Store.create(tmp_path / name) as store:
            for seed in seeds:
                scores = outcomes("mema", "digits", seed, 0.0)
                store.write(record(spec("mema", "digits", seed), scores), scores, items("digits"))
        folders.append(tmp_path / name)
    _, found = compared(*folders)
    assert found["mema", "digits"].gap == "no seed of mema on digits is in both"
    assert "No finished cell has the same" in text_of(*folders)


def test_the_command_writes_every_difference_as_csv(folder, tmp_path):
    other = study(tmp_path / "other", {"penultimate": 0.0, "mema": 0.1})
    out, stream = tmp_path / "diff.csv", io.StringIO()
    assert diff(folder, other, out=out, stream=stream) == 0
    rows = {(r["method"], r["over"]): r for r in csv.DictReader(out.read_text().splitlines())}
    assert len(rows) == 2 * 4
    assert float(rows["mema", "suite"]["low"]) > 0 and rows["penultimate", "digits"]["q"] == ""
    assert rows["penultimate", "digits"]["difference"] == "0.000000"
    with pytest.raises(UserError, match="no results in"):
        diff(folder, tmp_path / "nowhere", out=None, stream=stream)


def test_a_long_value_is_cut_and_an_absent_one_is_said():
    (one,) = changes({"methods": ["m"] * 50}, {})
    assert len(one.a) == 60 and one.a.endswith("...") and one.b == "not set"
