"""Numbers as text: all digits for programs, points for people, nothing where there is nothing."""

import math

from fusionbench.stats.estimate import Estimate


def digits(value: float | None) -> str:
    """A share or a difference for programs: six decimals."""
    return "" if value is None or math.isnan(value) else f"{round(value, 6) + 0.0:.6f}"


def precise(value: float | None) -> str:
    """A p-value, a standard error, degrees of freedom: eight digits that count."""
    return "" if value is None or math.isnan(value) else f"{value:.8g}"


def points(value: float | None, *, sign: bool = True) -> str:
    """A difference in points: `+1.2`."""
    if value is None or math.isnan(value):
        return "-"
    # Adding zero turns -0.0 into 0.0.
    rounded = round(100 * value, 1) + 0.0
    return f"{rounded:+.1f}" if sign else f"{rounded:.1f}"


def p_text(value: float | None) -> str:
    """A p-value to three decimals; never 0."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def interval(estimate: Estimate | None) -> str:
    """`+1.2 [-0.4, +2.8]`, in points."""
    if estimate is None:
        return "-"
    low, high = estimate.interval()
    return f"{points(float(estimate.value))} [{points(float(low))}, {points(float(high))}]"
