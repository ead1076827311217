"""The judge: corrections, verdicts, and the same answers for the same questions."""

import numpy as np
import pytest

from fusionbench.stats.estimate import Estimate
from fusionbench.stats.verdicts import (
    Correction,
    Decision,
    Question,
    Verdict,
    all_differ,
    benjamini_hochberg,
    holm,
    judge,
    judge_groups,
)


def row(values, se=0.01):
    values = np.asarray(values, dtype=float)
    return Estimate(
        value=values,
        variance=np.full(values.shape, se**2),
        nu=np.full(values.shape, 50.0),
        replicates=10,
    )


def asked(*references, margin=0.04, **more):
    """One planned question for each row of the references' tables."""
    return [
        Question(references=tuple(table[i] for table in references), margin=margin, **more)
        for i in range(len(references[0].value))
    ]


def planned(*references, margin=0.04):
    return judge(asked(*references, margin=margin), Correction.HOLM)


def verdicts(answers):
    return tuple(answer.verdict for answer in answers)


def test_adjusted_p_values_keep_the_given_order_and_stay_below_one():
    p = np.array([0.9, 0.01, 0.04, 0.01])
    assert holm(p).tolist() == pytest.approx([0.9, 0.04, 0.08, 0.04])
    assert benjamini_hochberg(p).max() <= 1
    assert holm(np.array([])).size == 0


def test_impossible_p_values_are_refused():
    for bad in ([0.1, np.nan], [0.1, 1.2], [-0.1]):
        for correct in (holm, benjamini_hochberg):
            with pytest.raises(ValueError, match="p-values"):
                correct(np.array(bad))


def test_two_references_need_the_larger_p_and_the_same_direction():
    p = np.array([0.01, 0.03, 0.01, 0.02, 0.2, 0.01])
    values = np.array([1.0, 2.0, 1.0, -1.0, -1.0, -1.0])
    assert all_differ(p, values, np.array([0, 2, 4])).tolist() == [0.03, 1.0, 0.2]


def test_the_four_verdicts():
    assert verdicts(planned(row([0.08, -0.08, 0.0, 0.020]))) == (
        Verdict.BETTER,
        Verdict.WORSE,
        Verdict.EQUIVALENT,
        Verdict.UNDECIDED,
    )
    assert str(Verdict.UNDECIDED) == "undecided"


def test_a_real_but_tiny_difference_is_called_so():
    found = verdicts(planned(row([0.010, -0.010], se=0.002)))
    assert found == (Verdict.SLIGHTLY_BETTER, Verdict.SLIGHTLY_WORSE)


def test_better_needs_both_the_baseline_and_the_control_beaten():
    baseline, control = row([0.08, 0.08, 0.08]), row([0.08, 0.0, -0.08])
    found = verdicts(planned(baseline, control))
    assert found == (Verdict.BETTER, Verdict.UNDECIDED, Verdict.UNDECIDED)
    assert verdicts(planned(row([0.0]), row([0.08]))) == (Verdict.UNDECIDED,)


def test_the_detectable_effect_is_at_the_first_holm_step_and_alone_beside_it():
    table = row([0.0, 0.01, 0.02])
    answers = planned(table)
    assert [one.mde for one in answers] == table.mde(0.05 / 3).tolist()
    assert [one.mde_alone for one in answers] == table.mde().tolist()
    noisier = planned(table, row([0.0, 0.0, 0.0], se=0.02))
    assert all(two.mde > one.mde for one, two in zip(answers, noisier, strict=True))


def test_swapping_the_sides_turns_better_into_worse_and_keeps_every_p():
    values = np.array([0.08, 0.002, -0.03])
    there, back = planned(row(values)), planned(row(-values))
    swapped = {"better": "worse", "worse": "better"}
    for one, two in zip(there, back, strict=True):
        assert one.p_adjusted == two.p_adjusted
        assert one.p_equivalent_adjusted == two.p_equivalent_adjusted
        assert swapped.get(one.verdict, one.verdict) == two.verdict


def test_one_more_contrast_changes_adjusted_p_values_only():
    few, more = planned(row([0.03, 0.01])), planned(row([0.03, 0.01, 0.0]))
    for one, two in zip(few, more[:2], strict=True):
        assert (one.p, one.mde_alone) == (two.p, two.mde_alone)
        assert two.p_adjusted >= one.p_adjusted


def test_a_question_without_an_answer_stays_in_its_group():
    alone, beside = planned(row([0.03])), judge([*asked(row([0.03])), Question()], Correction.HOLM)
    assert beside[1] == Decision()
    assert beside[0].p_adjusted == 2 * alone[0].p_adjusted
    (larger,) = judge(asked(row([0.03])), Correction.HOLM, tests=2)
    assert larger == beside[0]


def test_three_seeds_get_an_interval_and_no_verdict():
    few = Estimate(value=np.zeros(2), variance=np.ones(2), nu=np.full(2, 2.0), replicates=3)
    for answer in planned(few):
        assert answer.p is None and answer.verdict == "" and answer.low < 0 < answer.high


def test_without_a_margin_only_the_direction_is_decided():
    questions = asked(row([0.08, -0.08, 0.0]), margin=None)
    answers = judge(questions, Correction.BENJAMINI_HOCHBERG)
    assert verdicts(answers) == (Verdict.HIGHER, Verdict.LOWER, Verdict.OPEN)
    assert all(one.p_equivalent is None and one.mde == one.mde_alone for one in answers)


def test_a_claim_is_decided_by_its_simultaneous_interval():
    table, inf = row([0.08, 0.08, 0.0]), float("inf")
    ranges = [(0.0, inf), (-inf, 0.0), (-0.01, 0.01)]
    questions = [Question(references=(table[i],), claimed=one) for i, one in enumerate(ranges)]
    answers = judge(questions, Correction.BONFERRONI)
    assert verdicts(answers) == (Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED)
    low, high = table.interval(0.05 / 3)
    assert [(one.low, one.high) for one in answers] == list(zip(low, high, strict=True))


def test_groups_are_judged_apart():
    questions = asked(row([0.03, 0.02, 0.01]), margin=None)
    found = judge_groups(questions, ["main", "two-way", "main"], Correction.HOLM)
    main = judge([questions[0], questions[2]], Correction.HOLM)
    assert [found[0], found[2]] == main
    assert found[1] == judge(questions[1:2], Correction.HOLM)[0]
