"""An estimate with its t interval, its tests and its minimum detectable effect.

Everything is elementwise over leading axes, so one `Estimate` may hold a whole table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import nctdtrinc, stdtr, stdtrit


def finite(name: str, values: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """`values` in double precision; ValueError if any of them is NaN or infinite."""
    numbers = np.asarray(values, dtype=np.float64)
    bad = int(np.count_nonzero(~np.isfinite(numbers)))
    if bad:
        raise ValueError(
            f"{name}: {bad} of {numbers.size} values are NaN or infinite; "
            "leave a missing cell out instead of passing it on"
        )
    return numbers


def two_way_layout(name: str, values: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """`values` as finite doubles whose last two axes are (seed, item), at least 2 x 2.

    ValueError for a single run or item, and on NaN.
    """
    numbers = finite(name, values)
    if numbers.ndim < 2 or numbers.shape[-2] < 2 or numbers.shape[-1] < 2:
        raise ValueError(
            f"{name}: needs at least 2 seeds and 2 items on its last two axes, "
            f"got an array of shape {numbers.shape}"
        )
    return numbers


# On three runs an interval is still honest, if very wide; a p-value is not informative.
FEWEST_REPLICATES = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its variance and the degrees of freedom `nu` of that variance.

    `replicates` is the number of seeds (or task families); with fewer than
    `FEWEST_REPLICATES` the tests raise ValueError, the interval does not.
    """

    value: Float[np.ndarray, "*batch"]
    variance: Float[np.ndarray, "*batch"]
    nu: Float[np.ndarray, "*batch"]
    replicates: int

    @property
    def se(self) -> Float[np.ndarray, "*batch"]:
        return np.asarray(np.sqrt(self.variance))

    @property
    def testable(self) -> bool:
        return self.replicates >= FEWEST_REPLICATES

    def quantile(self, probability: float) -> Float[np.ndarray, "*batch"]:
        return np.asarray(stdtrit(self.nu, probability))

    def half_width(self, alpha: float = 0.05) -> Float[np.ndarray, "*batch"]:
        return np.asarray(self.quantile(1 - alpha / 2) * self.se)

    def interval(
        self, alpha: float = 0.05
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
        """Lower and upper end; `alpha=0.05 / K` is the simultaneous (Bonferroni) interval of K."""
        half = self.half_width(alpha)
        return np.asarray(self.value - half), np.asarray(self.value + half)

    def p_value(self) -> Float[np.ndarray, "*batch"]:
        """Two-sided, against no difference."""
        self._refuse_few_replicates()
        return np.asarray(2 * self._upper_tail(np.asarray(np.abs(self.value))))

    def p_equivalent(
        self, margin: float | Float[np.ndarray, "*batch"]
    ) -> Float[np.ndarray, "*batch"]:
        """Two one-sided tests (TOST) of |value| >= margin, in the unit of `value`.

        Below 0.05 when the 90 % interval lies inside (-margin, margin).
        """
        self._refuse_few_replicates()
        if not np.all(np.asarray(margin) > 0):
            raise ValueError(f"margin must be positive and declared before the run, got {margin}")
        return np.asarray(self._upper_tail(np.asarray(margin - np.abs(self.value))))

    def mde(self, alpha: float = 0.05, power: float = 0.80) -> Float[np.ndarray, "*batch"]:
        """Minimum detectable effect: the true difference found at `alpha` with `power`.

        From variance and nu only, never from the value; itself an estimate that scatters by
        -35 to +45 % at 5 seeds, and by about 20 % at 10. See `_noncentrality`.
        """
        return np.asarray(self._noncentrality(1 - alpha / 2, power) * self.se)

    def __getitem__(self, index: int | tuple[int, ...] | Bool[np.ndarray, "..."]) -> "Estimate":
        return Estimate(
            value=np.asarray(self.value[index]),
            variance=np.asarray(self.variance[index]),
            nu=np.asarray(self.nu[index]),
            replicates=self.replicates,
        )

    def _upper_tail(self, distance: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """P(T > distance / se). No variance at all: 0, 1/2 or 1 by the sign of the distance."""
        limit = np.where(distance == 0, 0.0, np.copysign(np.inf, distance))
        ratio = np.divide(distance, self.se, out=limit, where=self.se > 0)
        return np.asarray(stdtr(self.nu, -ratio))

    def _noncentrality(self, level: float, power: float) -> Float[np.ndarray, "*batch"]:
        """How many standard errors off zero a t exceeds its `level` quantile with `power`.

        The usual t_level + t_power is the same number from nu = 30 on, but at 5 seeds and
        alpha = 0.05 / 11 it promises 80 % power and gives 73 % (noncentral: 79 %, simulated).
        """
        return np.asarray(nctdtrinc(self.nu, 1 - power, self.quantile(level)))

    def _refuse_few_replicates(self) -> None:
        if not self.testable:
            raise ValueError(
                f"no test on {self.replicates} replicates: at least {FEWEST_REPLICATES} are "
                "needed; print the values and their interval instead"
            )


def stack(estimates: Sequence[Estimate]) -> Estimate:
    """Several estimates as one table row each; `replicates` is the smallest of theirs.

    For contrasts that do not rest on the same number of seeds.
    """
    if not estimates:
        raise ValueError("nothing to stack: needs at least one estimate")
    return Estimate(
        value=np.stack([estimate.value for estimate in estimates]),
        variance=np.stack([estimate.variance for estimate in estimates]),
        nu=np.stack([estimate.nu for estimate in estimates]),
        replicates=min(estimate.replicates for estimate in estimates),
    )
