"""Answers to claims on simulated suites: any wrong answer is rare, thanks to the correction."""

import numpy as np
import pytest
from nullsuites import METHODS, SMALL_SUITE, against, monte_carlo_se, null_suite

from fusionbench.report.claims import Claim, Relation
from fusionbench.stats.suite import sum_over_shared_runs, sum_over_tasks
from fusionbench.stats.verdicts import Correction, Question, Verdict, judge

OTHERS = np.arange(1, METHODS)
# Nothing is better than anything: the first four claims are false, the last four true.
RELATIONS = [Relation.BETTER, Relation.WORSE] * 2 + [Relation.EQUIVALENT, Relation.NOT_WORSE] * 2


def claims(margin):
    return [
        Claim(id=str(n), sentence="", method="m", than="r", tasks=("suite",), relation=relation,
              by=margin if n >= 4 else 0.0)
        for n, relation in enumerate(RELATIONS)
    ]  # fmt: skip


def wrong(found, claim):
    true = claim.relation in (Relation.EQUIVALENT, Relation.NOT_WORSE)
    return found == (Verdict.FAILS if true else Verdict.HOLDS)


def answered(claim, estimate, tests):
    question = Question(references=(estimate,), claimed=claim.claimed)
    return judge([question], Correction.BONFERRONI, tests=tests)[0]


def wrong_suites(tests, *, shared, suites=300, margin=0.01):
    """Share of suites with any wrong answer, each interval at level 1 - 0.05 / tests."""
    rng = np.random.default_rng(7)
    add = sum_over_shared_runs if shared else sum_over_tasks
    count = 0
    for _ in range(suites):
        suite = null_suite(rng, seeds=5, shared_runs=shared, tasks=SMALL_SUITE)
        differences = add(against(suite, 0, OTHERS))
        count += any(
            wrong(answered(claim, differences[n], tests).verdict, claim)
            for n, claim in enumerate(claims(margin))
        )
    return count / suites


@pytest.mark.parametrize("shared", [False, True])
def test_any_wrong_answer_at_all_has_at_most_five_percent(shared):
    limit = 0.05 + 2 * monte_carlo_se(0.05, 300)
    assert wrong_suites(len(RELATIONS), shared=shared) <= limit


def test_without_the_correction_wrong_answers_are_common():
    assert wrong_suites(1, shared=False) > 0.09
