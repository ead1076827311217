"""Families, and the four verdicts drawn from them."""

import numpy as np
import pytest

from fusionbench.stats.estimate import Estimate
from fusionbench.stats.verdicts import Verdict, benjamini_hochberg, both_differ, holm, judge


def row(values, se=0.01):
    values = np.asarray(values, dtype=float)
    return Estimate(
        value=values,
        variance=np.full(values.shape, se**2),
        nu=np.full(values.shape, 50.0),
        replicates=10,
    )


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
    p = np.array([[0.01, 0.01, 0.2], [0.03, 0.02, 0.01]])
    values = np.array([[1.0, 1.0, -1.0], [2.0, -1.0, -1.0]])
    assert both_differ(p, values).tolist() == [0.03, 1.0, 0.2]


def test_the_four_verdicts():
    judged = judge([row([0.08, -0.08, 0.0, 0.020])], 0.04)
    assert judged.verdicts == (
        Verdict.BETTER,
        Verdict.WORSE,
        Verdict.EQUIVALENT,
        Verdict.UNDECIDED,
    )
    assert str(Verdict.UNDECIDED) == "undecided"


def test_a_real_but_tiny_difference_is_called_so():
    judged = judge([row([0.010, -0.010], se=0.002)], 0.04)
    assert judged.verdicts == (Verdict.SLIGHTLY_BETTER, Verdict.SLIGHTLY_WORSE)


def test_better_needs_both_the_baseline_and_the_control_beaten():
    baseline, control = row([0.08, 0.08, 0.08]), row([0.08, 0.0, -0.08])
    judged = judge([baseline, control], 0.04)
    assert judged.verdicts == (Verdict.BETTER, Verdict.UNDECIDED, Verdict.UNDECIDED)
    assert judged.value.tolist() == baseline.value.tolist()
    assert judge([row([0.0]), row([0.08])], 0.04).verdicts == (Verdict.UNDECIDED,)


def test_the_detectable_effect_is_at_the_first_holm_step_and_alone_beside_it():
    table = row([0.0, 0.01, 0.02])
    judged = judge([table], 0.04)
    assert judged.mde.tolist() == table.mde(0.05 / 3).tolist()
    assert judged.mde_alone.tolist() == table.mde().tolist()
    noisier = judge([table, row([0.0, 0.0, 0.0], se=0.02)], 0.04)
    assert (noisier.mde > judged.mde).all()


def test_swapping_the_sides_turns_better_into_worse_and_keeps_every_p():
    values = np.array([0.08, 0.002, -0.03])
    there, back = judge([row(values)], 0.04), judge([row(-values)], 0.04)
    assert np.array_equal(there.p_adjusted, back.p_adjusted)
    assert np.array_equal(there.p_equivalent_adjusted, back.p_equivalent_adjusted)
    swapped = {"better": "worse", "worse": "better"}
    assert [swapped.get(v, v) for v in there.verdicts] == list(back.verdicts)


def test_one_more_contrast_changes_adjusted_p_values_only():
    few, more = judge([row([0.03, 0.01])], 0.04), judge([row([0.03, 0.01, 0.0])], 0.04)
    assert np.array_equal(few.p_value, more.p_value[:2])
    assert np.array_equal(few.mde_alone, more.mde_alone[:2])
    assert (more.p_adjusted[:2] >= few.p_adjusted).all()


def test_three_seeds_get_no_verdict():
    few = Estimate(value=np.zeros(2), variance=np.ones(2), nu=np.full(2, 2.0), replicates=3)
    with pytest.raises(ValueError, match="no test on 3 replicates"):
        judge([few], 0.04)
