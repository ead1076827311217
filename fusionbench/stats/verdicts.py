"""Four verdicts on planned contrasts: better, worse, equivalent, undecided.

All of them, and the minimum detectable effect beside the last, come from one variance and one nu.
Margins are declared before the run and never computed from data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Real

from fusionbench.stats.estimate import Estimate, finite

# Many questions at once: Holm, Benjamini-Hochberg, and the question that needs two answers.


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


# In the unit of a score in [0, 1]: one point and two points.
SUITE_MARGIN = 0.010
TASK_MARGIN = 0.020


class Verdict(StrEnum):
    BETTER = "better"
    WORSE = "worse"
    SLIGHTLY_BETTER = "better by less than the margin"
    SLIGHTLY_WORSE = "worse by less than the margin"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A family of contrasts with its decisions; every array has one entry per contrast.

    `value` is the difference from the first reference. `mde` is at the first Holm step
    (alpha / K), `mde_alone` that of a single planned contrast.
    """

    value: Float[np.ndarray, " contrast"]
    p_value: Float[np.ndarray, " contrast"]
    p_adjusted: Float[np.ndarray, " contrast"]
    p_equivalent: Float[np.ndarray, " contrast"]
    p_equivalent_adjusted: Float[np.ndarray, " contrast"]
    mde: Float[np.ndarray, " contrast"]
    mde_alone: Float[np.ndarray, " contrast"]
    verdicts: tuple[Verdict, ...]


def judge(references: Sequence[Estimate], margin: float, *, alpha: float = 0.05) -> Judged:
    """Decide a family of K contrasts, each against one reference or against all of several.

    One `Estimate` of K differences per reference (baseline first, then the matched control).
    "Better" needs every reference beaten, "equivalent" needs equivalence to each; tests of
    difference and of equivalence are two families, each under Holm.
    """
    values = np.stack([reference.value for reference in references])
    if values.ndim != 2:
        raise ValueError(f"needs one row of contrasts per reference, got shape {values.shape}")
    p = both_differ(np.stack([reference.p_value() for reference in references]), values)
    p_equivalent = np.max([reference.p_equivalent(margin) for reference in references], axis=0)
    p_adjusted, p_equivalent_adjusted = holm(p), holm(p_equivalent)
    return Judged(
        value=values[0],
        p_value=p,
        p_adjusted=p_adjusted,
        p_equivalent=p_equivalent,
        p_equivalent_adjusted=p_equivalent_adjusted,
        mde=np.max([reference.mde(alpha / values.shape[1]) for reference in references], axis=0),
        mde_alone=np.max([reference.mde(alpha) for reference in references], axis=0),
        verdicts=decide(values[0], p_adjusted, p_equivalent_adjusted, alpha=alpha),
    )


def decide(
    values: Float[np.ndarray, " contrast"],
    p_adjusted: Float[np.ndarray, " contrast"],
    p_equivalent_adjusted: Float[np.ndarray, " contrast"],
    *,
    alpha: float = 0.05,
) -> tuple[Verdict, ...]:
    """The verdict of each contrast from its adjusted p-values; a real difference goes first."""
    rows = zip(values, p_adjusted < alpha, p_equivalent_adjusted < alpha, strict=True)
    return tuple(_verdict(float(value), bool(diff), bool(same)) for value, diff, same in rows)


def _verdict(value: float, differs: bool, same: bool) -> Verdict:
    if differs and value > 0:
        return Verdict.SLIGHTLY_BETTER if same else Verdict.BETTER
    if differs:
        return Verdict.SLIGHTLY_WORSE if same else Verdict.WORSE
    return Verdict.EQUIVALENT if same else Verdict.UNDECIDED
