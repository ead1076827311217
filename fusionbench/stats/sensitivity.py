"""Whether a task can tell methods apart, from the scores of single layers alone.

A task is insensitive if no single layer is above chance (Holm over tasks), and saturated if every
layer is nearly perfect. The rule looks at no fusion method.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtr

from fusionbench.stats.verdicts import holm

LEVEL = 0.05
SATURATED = 0.98
"""A task is saturated if every layer scores more."""


def above_chance(scores: Float[np.ndarray, " layer"], chance: float, examples: int) -> float:
    """One-sided p of the best layer against chance, times the number of layers (Bonferroni).

    Normal approximation of a guesser's score on `examples` examples; the mean over seeds varies
    less than one seed, so the p is an upper one.
    """
    spread = float(np.sqrt(chance * (1 - chance) / max(1, examples)))
    best = float(np.max(scores))
    if spread == 0:
        return float(best <= chance)
    return min(1.0, float(ndtr((chance - best) / spread)) * len(scores))


def insensitive(p_values: Float[np.ndarray, " task"]) -> Bool[np.ndarray, " task"]:
    """Tasks whose best layer is not above chance at 5 %, corrected over the tasks by Holm."""
    return holm(p_values) > LEVEL


def saturated(scores: Float[np.ndarray, " layer"]) -> bool:
    """Whether every layer scores more than 98 %."""
    return bool(np.min(scores) > SATURATED)
