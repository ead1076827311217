"""Whether a task can tell methods apart, from the scores of single layers alone.

A task is insensitive if no single layer is above chance (Holm over tasks), and saturated if every
layer is nearly perfect. The rule looks at no fusion method, so it favours none; it is applied to
the test examples, since a task must be readable where methods are compared.

The p of the best of several layers is Bonferroni's. Layers are correlated, so it is too large
rather than too small: a task is left out too often rather than too rarely.

Over the tasks of a suite the p are corrected by Holm: with 5 %, at most one suite in twenty of
tasks that no layer can read keeps one of them (a test simulates it).
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import bdtrc

from fusionbench.stats.verdicts import holm

LEVEL = 0.05
SATURATED = 0.98
"""A task is saturated if every layer scores more.

No method can be better than single layers there."""


def above_chance(scores: Float[np.ndarray, " layer"], chance: float, examples: int) -> float:
    """One-sided p of the best layer against chance, times the number of layers (Bonferroni).

    scores: mean scores of single layers over seeds, 0 to 1; chance: the score of a guesser;
    examples: test examples behind each score. Returns a p between 0 and 1. Raises ValueError for
    scores or a chance outside 0 to 1, and without examples.

    Binomial, for a guesser on `examples` independent examples; the mean over seeds, rounded down
    to whole examples, varies less than one seed does.
    """
    if not (0 <= float(np.min(scores)) and float(np.max(scores)) <= 1 and 0 <= chance <= 1):
        raise ValueError(f"scores and chance must lie in [0, 1], got {scores.tolist()}, {chance}")
    if examples < 1:
        raise ValueError("a task without test examples has no score")
    right = int(np.floor(float(np.max(scores)) * examples + 1e-9))
    if right == 0:
        return 1.0
    return min(1.0, float(bdtrc(right - 1, examples, chance)) * len(scores))


def over_tasks(p_values: Float[np.ndarray, " task"]) -> Float[np.ndarray, " task"]:
    """The p of each task's comparison with the blind model, corrected over the tasks by Holm."""
    return holm(p_values)


def insensitive(p_values: Float[np.ndarray, " task"]) -> Bool[np.ndarray, " task"]:
    """Tasks whose best layer is not above chance at 5 %, corrected over the tasks by Holm.

    p_values: one per task, from `above_chance`. Returns True for each task that cannot tell
    methods apart.
    """
    return holm(p_values) > LEVEL


def saturated(scores: Float[np.ndarray, " layer"]) -> bool:
    """Whether every layer scores more than 98 %.

    scores: mean scores of all layers, 0 to 1.
    """
    return bool(np.min(scores) > SATURATED)
