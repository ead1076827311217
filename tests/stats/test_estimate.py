"""Intervals, p-values, equivalence and detectable effects come from one variance and one nu."""

import numpy as np
import pytest
from scipy import stats

from fusionbench.stats.estimate import Estimate, stack


def an_estimate(value=0.02, se=0.01, nu=8.0, replicates=5):
    return Estimate(
        value=np.asarray(value),
        variance=np.asarray(se**2),
        nu=np.asarray(nu),
        replicates=replicates,
    )


def test_p_is_below_alpha_exactly_when_the_interval_leaves_zero_out():
    for value in np.linspace(-0.05, 0.05, 41):
        estimate = an_estimate(value)
        low, high = estimate.interval()
        assert (float(estimate.p_value()) < 0.05) == (low > 0 or high < 0)


def test_equivalence_is_the_90_percent_interval_inside_the_margin():
    for value in np.linspace(-0.05, 0.05, 41):
        estimate = an_estimate(value)
        low, high = estimate.interval(0.10)
        inside = bool(low > -0.04 and high < 0.04)
        assert (float(estimate.p_equivalent(0.04)) < 0.05) == inside


def test_the_detectable_effect_ignores_the_value():
    assert float(an_estimate(0.0).mde()) == float(an_estimate(0.9).mde())
    assert float(an_estimate().mde(0.05 / 11)) > float(an_estimate().mde())


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 11, 0.05 / 990])
@pytest.mark.parametrize("nu", [3.0, 4.0, 9.0, 30.0, 1e3, 1e6])
def test_the_detectable_effect_has_the_power_it_promises(nu, alpha):
    estimate = an_estimate(se=1.0, nu=nu)
    effect = float(estimate.mde(alpha))
    critical = float(estimate.quantile(1 - alpha / 2))
    assert stats.nct.sf(critical, nu, effect) == pytest.approx(0.80, abs=1e-6)
    if nu >= 30 and alpha == 0.05:
        assert effect == pytest.approx(critical + float(estimate.quantile(0.80)), rel=1e-3)


def test_no_variance_decides_everything_but_zero():
    assert float(an_estimate(0.0, se=0.0).p_value()) == 1
    assert float(an_estimate(0.1, se=0.0).p_value()) == 0
    assert float(an_estimate(0.0, se=0.0).p_equivalent(0.01)) == 0


def test_three_replicates_have_an_interval_and_no_test():
    estimate = an_estimate(replicates=3)
    assert np.isfinite(estimate.interval()).all()
    assert not estimate.testable
    for test in (estimate.p_value, lambda: estimate.p_equivalent(0.01)):
        with pytest.raises(ValueError, match="no test on 3 replicates"):
            test()


def test_a_margin_must_be_positive():
    with pytest.raises(ValueError, match="margin must be positive"):
        an_estimate().p_equivalent(0.0)


def test_estimates_stack_and_come_apart_again():
    table = stack([an_estimate(0.01), an_estimate(0.03, nu=4.0, replicates=4)])
    assert table.value.tolist() == [0.01, 0.03]
    assert table.replicates == 4
    assert float(table[1].p_value()) == float(an_estimate(0.03, nu=4.0).p_value())
    with pytest.raises(ValueError, match="nothing to stack"):
        stack([])
