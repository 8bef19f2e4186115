import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from cluster.effort import fit_line

positive = st.floats(1e-3, 1e6)


def test_points_on_a_line_give_the_line_and_no_spread() -> None:
    macs = [1e5, 3e5, 2e6, 7e6]
    line = fit_line(macs, [2.0 + 3e-6 * each for each in macs])
    assert [line.fixed_s, line.per_mac_s] == pytest.approx([2.0, 3e-6])
    assert [line.low, line.high, line.num] == pytest.approx([1.0, 1.0, 4])
    assert line.seconds(1e6) == pytest.approx(5.0)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=12))
def test_the_fit_is_the_non_negative_least_squares_of_relative_errors(points: list[tuple[float, float]]) -> None:
    x, y = np.array(points).T
    line = fit_line(x.tolist(), y.tolist())

    def error(fixed: float, per_mac: float) -> float:
        return float(np.square((fixed + per_mac * x) / y - 1).sum())

    scaled = np.stack([1 / y, x / x.max() / y], axis=1)
    (fixed, per_mac), _ = nnls(scaled, np.ones_like(y))
    assert line.fixed_s >= 0
    assert line.per_mac_s >= 0
    assert error(line.fixed_s, line.per_mac_s) <= error(fixed, per_mac / x.max()) * (1 + 1e-6) + 1e-9


def test_four_in_five_of_many_measurements_are_in_the_interval() -> None:
    chance = np.random.default_rng(0)
    macs = chance.uniform(1e5, 1e7, 2000)
    seconds = (1 + 1e-6 * macs) * chance.lognormal(0, 0.3, 2000)
    line = fit_line(macs.tolist(), seconds.tolist())
    inside = [line.low <= took / line.seconds(of) <= line.high for of, took in zip(macs, seconds, strict=True)]
    assert np.mean(inside) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("macs", "seconds"), [([], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0])])
def test_nothing_to_fit_is_refused(macs: list[float], seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="a line needs pairs of positive numbers"):
        fit_line(macs, seconds)
