"""Null suites: no method differs from another, and each group of tests errs at most 1 time in 20.

All decisions come from `verdicts.judge`, the function that every report calls.

Nine methods (four near-clones) of unequal stability on six tasks: 100 to 2,000 images, accuracies
0.55 to 0.985, up to four questions per image, two tasks on the same images; runs of their own per
task, or shared by all tasks.
"""

from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from nullsuites import (
    METHODS,
    SMALL_SUITE,
    SUITE,
    against,
    cloned,
    draw,
    monte_carlo_se,
    null_suite,
)

from fusionbench.stats.crossed import compare, crossed_t, step_down_max_t, weighted_sum
from fusionbench.stats.factorial import factorial_effects
from fusionbench.stats.suite import sum_over_shared_runs, sum_over_tasks
from fusionbench.stats.verdicts import Correction, Question, Verdict, judge, judge_groups

EFFORT = [60, pytest.param(2_000, marks=pytest.mark.slow)]
COMBINE = {False: sum_over_tasks, True: sum_over_shared_runs}
NO_ALARM = (Verdict.EQUIVALENT, Verdict.UNDECIDED, Verdict.OPEN)


def asked(*references, margin=None):
    """One question for each row of the references' tables."""
    return [
        Question(references=tuple(table[row] for table in references), margin=margin)
        for row in range(len(references[0].value))
    ]


def alarm(answers):
    return any(answer.verdict not in NO_ALARM for answer in answers)


def alarms(suite, shared_runs):
    """False alarms of each correction group in one null suite, and the size of one contrast."""
    combine = COMBINE[shared_runs]
    tasks = against(suite, 0, np.arange(1, METHODS))
    cells = [crossed_t(compare(task.values, task.groups)) for task in tasks]
    planned, tests = combine(tasks), [one for table in cells for one in asked(table)]
    to_both = [combine(against(suite, reference, np.arange(2, METHODS))) for reference in (0, 1)]
    return {
        "suite, Holm": alarm(judge(asked(planned, margin=0.01), Correction.HOLM)),
        "suite, one contrast": (planned.p_value() < 0.05).mean(),
        "suite, both references": alarm(judge(asked(*to_both, margin=0.01), Correction.HOLM)),
        "48 cells, Holm": alarm(judge(tests, Correction.HOLM)),
        "48 cells, one contrast": np.mean([table.p_value() < 0.05 for table in cells]),
        "48 cells, Benjamini-Hochberg": alarm(judge(tests, Correction.BENJAMINI_HOCHBERG)),
    }


@lru_cache(maxsize=8)
def rates(seeds, shared_runs, reps):
    rng = np.random.default_rng(31 + seeds)
    tasks = SUITE if reps >= 2_000 else SMALL_SUITE
    suites = (
        null_suite(rng, seeds=seeds, shared_runs=shared_runs, tasks=tasks) for _ in range(reps)
    )
    found = [alarms(suite, shared_runs) for suite in suites]
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("shared_runs", [False, True])
@pytest.mark.parametrize("seeds", [5, 10])
def test_no_group_raises_a_false_alarm_more_than_once_in_twenty(
    seeds, shared_runs, reps, record_property
):
    for name, rate in rates(seeds, shared_runs, reps).items():
        record_property(name, rate)
        assert rate <= 0.05 + 2 * monte_carlo_se(0.05, reps), name


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("contrasts", [8, 44])
def test_joint_sign_flips_keep_their_promise_for_this_test_set(contrasts, reps, record_property):
    rng, found = np.random.default_rng(41), []
    for _ in range(reps):
        # On fixed images the runs are all that varies; every method shares the reference's luck.
        luck = np.concatenate([cloned(draw(rng, METHODS, 10)), draw(rng, 36, 10)])
        found.append(step_down_max_t(luck[1 : contrasts + 1] - luck[0]).p_value.min() < 0.05)
    record_property("fwer", float(np.mean(found)))
    assert np.mean(found) <= 0.05 + 2 * monte_carlo_se(0.05, reps)


SWITCHES = ("memory", "feedback", "query")
CELLS = np.array(list(product((False, True), repeat=3)))
EFFECTS = [effect for effect in factorial_effects(SWITCHES, CELLS) if effect.order <= 2]
ORDERS = [str(effect.order) for effect in EFFECTS]


def null_ablation(rng, seeds, items=300):
    """Eight cells without any effect; turning the first switch on makes runs unstable."""
    run_sd = np.where(CELLS[:, 0], 0.30, 0.03)[:, None, None]
    by_item = draw(rng, 1, 1, items) + 0.4 * draw(rng, 8, 1, items)
    y = by_item + run_sd * draw(rng, 8, seeds, 1) + draw(rng, 8, seeds, items)
    return (y + 0.67 * np.sqrt(1 + 1 + 0.16 + run_sd**2) > 0).astype(float)


@pytest.mark.parametrize("reps", EFFORT)
@pytest.mark.parametrize("seeds", [5, 10])
def test_an_unstable_switch_alarms_neither_main_effects_nor_interactions(
    seeds, reps, record_property
):
    rng, found = np.random.default_rng(51), []
    for _ in range(reps):
        y = null_ablation(rng, seeds)
        estimates = [crossed_t(compare(weighted_sum(effect.weights, y))) for effect in EFFECTS]
        questions = [Question(references=(one,)) for one in estimates]
        answers = judge_groups(questions, ORDERS, Correction.HOLM)
        found.append((alarm(answers[:3]), alarm(answers[3:])))
    main, two_way = np.mean(found, axis=0)
    record_property("main_effects", float(main))
    record_property("two_way", float(two_way))
    assert max(main, two_way) <= 0.05 + 2 * monte_carlo_se(0.05, reps)


def test_the_null_suites_are_what_they_claim_to_be():
    suite = null_suite(np.random.default_rng(61), seeds=40, shared_runs=False)
    for (y, images), task in zip(suite, SUITE, strict=True):
        assert y.shape == (METHODS, 40, task.images * task.questions)
        assert len(np.unique(images)) == task.images
        assert y.mean() == pytest.approx(task.accuracy, abs=0.05)
    assert np.array_equal(np.unique(suite[2][1]), np.unique(suite[3][1]))
    agreement = [np.mean(suite[2][0][m] == suite[2][0][8]) for m in (1, 7)]
    assert agreement[1] > agreement[0] + 0.1
