"""References of single layers, and the tasks that they mark."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from toy_records import put, spec

from fusionbench.records.pairs import Results
from fusionbench.records.store import Store
from fusionbench.report.contrasts import scopes
from fusionbench.report.layer_table import reference_page
from fusionbench.stats.power import above_chance, insensitive, saturated
from fusionbench.study.study import QUICK

BUDGET = replace(QUICK.budget, reader="attentive")
RIDGE = replace(BUDGET, reader="ridge")


def _layers(store, task, shares, budget=RIDGE, **settings):
    for layer, share in enumerate(shares):
        for seed in (0, 1):
            cell = spec("layer", task, seed, settings={"index": layer, **settings}, budget=budget)
            put(
                store, cell, share, label=f"layer[index={layer}]", taps=((layer,),), in_suite=True,
                chance=0.25, group="fine", parameters={"fusion": 0},
            )  # fmt: skip


def test_a_task_at_chance_leaves_the_aggregate_and_a_perfect_one_is_marked(tmp_path):
    store = Store.open(tmp_path)
    _layers(store, "digits", [0.6, 0.9, 0.8])
    _layers(store, "scenes_text", [0.25, 0.24, 0.26])
    _layers(store, "easy_vqa", [1.0, 1.0, 1.0])
    (table,) = Results(store).tables
    marks = {task.name: task.mark for task in table.tasks}
    assert marks == {"digits": "", "scenes_text": "insensitive", "easy_vqa": "saturated"}
    suite = scopes(table)[0]
    assert {table.tasks[column].name for column in suite.tasks} == {"digits", "easy_vqa"}
    page = reference_page([table]).markdown
    assert "Insensitive: `scenes_text`" in page and "Saturated: `easy_vqa`" in page
    assert "90.0 (hs[1])" in page


def test_the_reader_of_the_study_is_measured_against_the_closed_form(tmp_path):
    store = Store.open(tmp_path)
    _layers(store, "digits", [0.6, 0.9, 0.8], budget=BUDGET, reader="ridge")
    for seed in (0, 1):
        cell = spec("penultimate", "digits", seed, settings={"index": -2}, budget=BUDGET)
        put(store, cell, 0.5, taps=((1,),), in_suite=True, chance=0.25)
    (table,) = Results(store).tables
    row = reference_page([table]).rows[1]
    assert (row["layer"], row["own_score"]) == (1, pytest.approx(0.5, abs=0.02))
    assert "| 40.0" in reference_page([table]).markdown


def test_without_references_nothing_is_marked(tmp_path):
    store = Store.open(tmp_path)
    for seed in (0, 1):
        cell = spec("penultimate", "digits", seed, settings={"index": -2}, budget=RIDGE)
        put(store, cell, 0.25, taps=((1,),), in_suite=True, chance=0.25)
    (table,) = Results(store).tables
    assert [task.mark for task in table.tasks] == [""]
    assert reference_page([table]).markdown == ""


def test_if_no_task_is_sensitive_all_stay_in_the_aggregate(tmp_path):
    store = Store.open(tmp_path)
    _layers(store, "digits", [0.25, 0.24, 0.26])
    (table,) = Results(store).tables
    assert table.suite.all()


def test_the_p_of_the_best_layer_is_the_binomial_one():
    p = above_chance(np.array([0.25, 0.30, 0.28]), 0.25, 448)
    assert p == pytest.approx(3 * binom.sf(134 - 1, 448, 0.25))
    assert above_chance(np.array([0.2]), 0.25, 448) > 0.5


def test_guessing_layers_pass_in_one_of_twenty_suites():
    rng = np.random.default_rng(0)
    suites = 400
    wrong = 0
    for _ in range(suites):
        scores = rng.binomial(448, 0.25, size=(11, 9)) / 448
        wrong += not insensitive(np.array([above_chance(row, 0.25, 448) for row in scores])).all()
    assert wrong / suites <= 0.08


def test_scores_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        above_chance(np.array([41.0]), 0.25, 448)
    with pytest.raises(ValueError, match="without test examples"):
        above_chance(np.array([0.4]), 0.25, 0)


def test_saturation_needs_every_layer():
    assert saturated(np.array([0.99, 1.0]))
    assert not saturated(np.array([0.97, 1.0]))
