"""Many questions at once: Holm, Benjamini-Hochberg, and the question that needs two answers."""

import numpy as np
from jaxtyping import Float, Real

from fusionbench.stats.refusals import finite

# The confirmatory family of a study: contrasts declared in its file.
MOST_PLANNED = 12


def holm(p_values: Real[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p: any false rejection at all with at most 5 %, however the tests depend.

    Holm 1979, https://www.jstor.org/stable/4615733. ValueError on NaN or outside [0, 1].
    """
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    return _in_given_order(np.maximum.accumulate(stepped), order)


def benjamini_hochberg(p_values: Real[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p (q): of the rejections at q <= 0.05, about 5 % are false. Exploratory only.

    Benjamini and Hochberg 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _in_given_order(np.minimum.accumulate(stepped[::-1])[::-1], order)


def both_differ(
    p_values: Real[np.ndarray, "reference *contrast"],
    values: Real[np.ndarray, "reference *contrast"],
) -> Float[np.ndarray, "*contrast"]:
    """One p for "differs from every reference, in the same direction" (intersection-union).

    The largest p: no correction is due, for all must hold (Berger 1982). Better than the baseline
    and worse than the control is neither better nor worse: p = 1.
    """
    p = _probabilities(p_values)
    signs = np.sign(finite("values", values))
    agree = (signs == signs[0]).all(axis=0)
    return np.where(agree, p.max(axis=0), 1.0)


def _in_given_order(
    sorted_p: Float[np.ndarray, " test"], order: np.ndarray
) -> Float[np.ndarray, " test"]:
    adjusted = np.empty_like(sorted_p)
    adjusted[order] = np.minimum(sorted_p, 1.0)
    return adjusted


def _probabilities(p_values: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    p = finite("p-values", p_values)
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"p-values must lie in [0, 1], got {p.min()} to {p.max()}")
    return p
