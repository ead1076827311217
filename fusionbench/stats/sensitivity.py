"""Whether a task can tell methods apart, from the scores of single layers alone.

A task is insensitive if no single layer is above chance (Holm over tasks), and saturated if every
layer is nearly perfect. The rule looks at no fusion method.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import bdtrc

from fusionbench.stats.verdicts import holm

LEVEL = 0.05
SATURATED = 0.98
"""A task is saturated if every layer scores more."""


def above_chance(scores: Float[np.ndarray, " layer"], chance: float, examples: int) -> float:
    """One-sided p of the best layer against chance, times the number of layers (Bonferroni).

    Binomial, for a guesser on `examples` independent examples; the mean over seeds, rounded down
    to whole examples, varies less than one seed does.
    """
    right = int(np.floor(float(np.max(scores)) * examples + 1e-9))
    if right == 0:
        return 1.0
    return min(1.0, float(bdtrc(right - 1, examples, chance)) * len(scores))


def insensitive(p_values: Float[np.ndarray, " task"]) -> Bool[np.ndarray, " task"]:
    """Tasks whose best layer is not above chance at 5 %, corrected over the tasks by Holm."""
    return holm(p_values) > LEVEL


def saturated(scores: Float[np.ndarray, " layer"]) -> bool:
    """Whether every layer scores more than 98 %."""
    return bool(np.min(scores) > SATURATED)
