"""Factorial ablations: every effect is a contrast with an error of its own."""

from itertools import product

import numpy as np
import pytest

from fusionbench.stats.factorial import (
    adjust_within_order,
    effect_differences,
    factorial_effects,
    simple_effect,
)

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
        effect.switches: effect_differences(effect, scores).mean()
        for effect in factorial_effects(SWITCHES, FULL)
    }
    assert found[("memory",)] == pytest.approx(0.10 + 0.08 / 2)
    assert found[("query",)] == pytest.approx(0.02)
    # Half the difference of the simple effects of memory with and without feedback.
    assert found[("memory", "feedback")] == pytest.approx(0.08 / 2)
    assert found[("memory", "query")] == pytest.approx(0)


def test_void_combinations_leave_the_contexts_that_exist():
    cells = FULL[~(~FULL[:, 0] & FULL[:, 1])]  # no feedback without memory
    effects = {effect.switches: effect for effect in factorial_effects(SWITCHES, cells)}
    assert effects[("memory",)].contexts == 2
    assert effects[("feedback",)].contexts == 2
    assert effects[("query",)].contexts == 3
    assert ("memory", "feedback") not in effects
    for effect in effects.values():
        assert effect.weights.sum() == pytest.approx(0)


def test_a_one_change_variant_is_the_simple_effect_at_the_full_model():
    effect = simple_effect(SWITCHES, FULL, of="memory", given={"feedback": True, "query": True})
    assert effect.weights.tolist() == [0, 0, 0, -1, 0, 0, 0, 1]
    cells = FULL[FULL[:, 1]]
    with pytest.raises(ValueError, match="no two cells differ in 'memory' alone"):
        simple_effect(SWITCHES, cells, of="memory", given={"feedback": False})


def test_holm_runs_within_each_order_and_three_way_effects_are_only_plotted():
    effects = factorial_effects(SWITCHES, FULL)
    p = np.array([0.01, 0.02, 0.5, 0.01, 0.3, 0.4, 0.001])
    expected = [0.03, 0.04, 0.5, 0.03, 0.6, 0.6, None]
    for found, known in zip(adjust_within_order(effects, p), expected, strict=True):
        assert found == (pytest.approx(known) if known is not None else None)


def test_designs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="1 to 4 switches"):
        factorial_effects(tuple("abcde"), np.zeros((2, 5), dtype=bool))
    with pytest.raises(ValueError, match="comes twice"):
        factorial_effects(SWITCHES, np.vstack([FULL, FULL[:1]]))
    with pytest.raises(ValueError, match="one column per switch"):
        factorial_effects(SWITCHES, FULL[:, :2])
    effect = factorial_effects(SWITCHES, FULL)[0]
    with pytest.raises(ValueError, match="needs 8 cells, got 7"):
        effect_differences(effect, np.zeros((7, 3, 4)))
