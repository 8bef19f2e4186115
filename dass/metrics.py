"""How well a predicted ranking agrees with the measured one.

Values are paired by position. A NaN on either side makes a correlation NaN; it is never replaced by a number, so that
a predictor without an opinion can never be chosen as the best.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Values = NDArray[np.float64]


def spearman(left: ArrayLike, right: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, where ties share their mean rank.

    NaN for fewer than 2 values, when one side is constant (it then ranks nothing), and when a value is NaN.

    Raises:
        ValueError: the sides are not two vectors of one length.
    """
    left, right = _paired(left, right)
    return float(stats.spearmanr(left, right).statistic) if _is_rankable(left, right) else float("nan")


def spearman_of_rows(left: Values, right: Values) -> Values:
    """(r,) Spearman of each row of `left` with that row of `right`, both (r, n) without NaN; NaN where one is constant."""
    ranks = [stats.rankdata(side, axis=1) for side in (left, right)]
    first, second = (side - side.mean(axis=1, keepdims=True) for side in ranks)
    scale = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    products: Values = (first * second).sum(axis=1)
    found = np.full(len(left), np.nan)
    np.divide(products, scale, out=found, where=scale > 0)
    return found


def kendall(left: ArrayLike, right: ArrayLike) -> float:
    """Kendall's tau-b, which corrects for ties; NaN and errors as in `spearman`."""
    left, right = _paired(left, right)
    return float(stats.kendalltau(left, right).statistic) if _is_rankable(left, right) else float("nan")


def regret_at_k(predicted: ArrayLike, actual: ArrayLike, k: int) -> float:
    """What is lost, in the unit of `actual` (accuracy points), by measuring only the `k` values predicted best.

    The best of all actual values minus the best of those `k`; 0 when they hold it. Of equal predictions the earlier
    counts as better, NaN predictions come last.

    Raises:
        ValueError: the sides are not vectors of one length, or `k` is not between 1 and that length.
    """
    predicted, actual = _paired(predicted, actual)
    return float(actual.max() - actual[_top(predicted, k)].max())


def half_width(values: ArrayLike, confidence: float = 0.95) -> float:
    """How far Student's t interval for the mean of independent normal `values` reaches to either side of their mean.

    Raises:
        ValueError: there are fewer than 2 values, or they are no vector.
    """
    known = np.asarray(values, dtype=np.float64)
    if known.ndim != 1 or known.size < 2:
        raise ValueError(
            f"an interval needs a vector of at least 2 values, got shape {known.shape}; repeat with more seeds"
        )
    quantile = stats.t.ppf((1 + confidence) / 2, known.size - 1)
    return float(quantile * known.std(ddof=1) / np.sqrt(known.size))


def top_k_accuracy(predicted: ArrayLike, actual: ArrayLike, k: int) -> float:
    """The share, 0..1, of the `k` actually best values that are among the `k` predicted best; errors as above."""
    predicted, actual = _paired(predicted, actual)
    return np.intersect1d(_top(predicted, k), _top(actual, k)).size / k


def _paired(left: ArrayLike, right: ArrayLike) -> tuple[Values, Values]:
    first, second = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"both sides must be vectors of one length, got shapes {first.shape} and {second.shape}; pair them first"
        )
    return first, second


def _is_rankable(left: Values, right: Values) -> bool:
    return all(side.size >= 2 and not np.isnan(side).any() and (side != side[0]).any() for side in (left, right))


def _top(values: Values, k: int) -> NDArray[np.intp]:
    """Indices of the `k` highest values, best first; the earlier of equals first, NaN last."""
    if not 1 <= k <= values.size:
        raise ValueError(f"k must be between 1 and the number of values, got {k} for {values.size}; lower k")
    return np.argsort(-values, kind="stable")[:k]
