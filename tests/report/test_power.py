"""Minimum detectable effects: with the seeds at hand, with more, and in the limit."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from paired_studies import study

from fusionbench.api.errors import UserError
from fusionbench.cli.reports import power
from fusionbench.records.history import Request
from fusionbench.records.pairs import Results, minus, task_weights
from fusionbench.records.store import Store
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
    rows = table.methods.index("mema"), table.methods.index("penultimate")
    return power_estimate(results, table, rows, list(tasks), over=over, goal=goal)


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
    assert plan.same == ("twin",) and {one.method for one in plan.estimates} == {"mema"}
    assert "`twin`" in page([plan], PowerOptions(), "results")


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
