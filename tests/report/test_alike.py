"""Methods that see nothing are found, from recorded counts or from outcomes alone."""

import numpy as np
import pytest
from toy_suite import put_task, quick_disk, write_suite

from fusionbench.records.pairs import Results
from fusionbench.records.store import Store
from fusionbench.report.build import write_report
from fusionbench.report.coverage import dead, one_answer, scored_alike

pytestmark = pytest.mark.usefixtures("no_figures")

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
