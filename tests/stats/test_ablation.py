"""Factorial ablations: every effect is a contrast with an error of its own."""

from itertools import product

import numpy as np
import pytest

from fusionbench.stats.crossed import weighted_sum
from fusionbench.stats.factorial import factorial_effects

SWITCHES = ("memory", "feedback", "query")
FULL = np.array(list(product((False, True), repeat=3)))


def test_a_full_design_has_every_effect_with_equal_weights():
    effects = factorial_effects(SWITCHES, FULL)
    assert [effect.order for effect in effects] == [1, 1, 1, 2, 2, 2, 3]
    signs = 2.0 * FULL - 1
    for effect in effects:
        columns = [SWITCHES.index(name) for name in effect.switches]
        assert effect.weights == pytest.approx(signs[:, columns].prod(axis=1) / 4)


def test_effects_recover_what_was_planted():
    memory, feedback, query = FULL.T.astype(float)
    planted = 0.5 + 0.10 * memory + 0.02 * query + 0.08 * memory * feedback
    scores = np.tile(planted[:, None, None], (1, 3, 4))
    found = {
        effect.switches: weighted_sum(effect.weights, scores).mean()
        for effect in factorial_effects(SWITCHES, FULL)
    }
    assert found[("memory",)] == pytest.approx(0.10 + 0.08 / 2)
    assert found[("query",)] == pytest.approx(0.02)
    # Half the difference of the simple effects of memory with and without feedback.
    assert found[("memory", "feedback")] == pytest.approx(0.08 / 2)
    assert found[("memory", "query")] == pytest.approx(0)


def test_skipped_combinations_leave_the_contexts_that_exist():
    cells = FULL[~(~FULL[:, 0] & FULL[:, 1])]  # no feedback without memory
    effects = {effect.switches: effect for effect in factorial_effects(SWITCHES, cells)}
    assert effects[("memory",)].contexts == 2
    assert effects[("feedback",)].contexts == 2
    assert effects[("query",)].contexts == 3
    assert ("memory", "feedback") not in effects
    for effect in effects.values():
        assert effect.weights.sum() == pytest.approx(0)


def test_designs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="1 to 4 switches"):
        factorial_effects(tuple("abcde"), np.zeros((2, 5), dtype=bool))
    with pytest.raises(ValueError, match="comes twice"):
        factorial_effects(SWITCHES, np.vstack([FULL, FULL[:1]]))
    with pytest.raises(ValueError, match="one column per switch"):
        factorial_effects(SWITCHES, FULL[:, :2])
    effect = factorial_effects(SWITCHES, FULL)[0]
    with pytest.raises(ValueError, match="needs 8 rows of scores, got 7"):
        weighted_sum(effect.weights, np.zeros((7, 3, 4)))
