"""What runs take, learned from runs or steps that were measured: seconds as a line in a student's MACs.

    seconds = fixed + per_mac * MACs        both >= 0, fitted to relative errors, because small students matter as much

A line belongs to one kind of work: one recipe on one task, in cohorts of one size, on one kind of device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

TAIL = 0.1  # share of the measured values outside an interval, at either end


@dataclass(frozen=True)
class Line:
    """A fitted line, and by how much what was measured lies beside it.

    low, high: four in five of the measured values are between these multiples of what the line says.
    num: how many values were measured.
    """

    fixed_s: float
    per_mac_s: float
    low: float
    high: float
    num: int

    def seconds(self, macs: float) -> float:
        """What the line says for a student of so many MACs."""
        return self.fixed_s + self.per_mac_s * macs


def fit_line(macs: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through measured (MACs, seconds), which must be at least one pair of positive numbers.

    The least sum of squared relative errors; where a term would be negative it is left out.
    """
    x, y = np.asarray(macs, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if x.size == 0 or x.shape != y.shape or not (x > 0).all() or not (y > 0).all():
        raise ValueError(f"a line needs pairs of positive numbers, got {x.size} and {y.size} values; measure some runs")
    fixed, per_mac = _relative_fit(x, y)
    low, high = np.quantile(y / (fixed + per_mac * x), (TAIL, 1 - TAIL))
    return Line(fixed, per_mac, float(low), float(high), x.size)


def _relative_fit(x: Values, y: Values) -> tuple[float, float]:
    """(a, b) that minimise the sum of ((a + b x) / y - 1)^2 with a, b >= 0."""
    alone = [(_through(1 / y), 0.0), (0.0, _through(x / y))]
    if x.min() < x.max():
        (a, b), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y), rcond=None)
        if a >= 0 and b >= 0:
            return float(a), float(b)
    return min(alone, key=lambda ab: float(np.square((ab[0] + ab[1] * x) / y - 1).sum()))


def _through(terms: Values) -> float:
    """The factor f that brings f * terms closest to 1."""
    return float(terms.sum() / np.square(terms).sum())
