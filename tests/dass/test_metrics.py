import math
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dass.metrics import kendall, regret_at_k, spearman, top_k_accuracy

distinct = st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True)
Measure = Callable[[list[float], list[float]], float]
ACTUAL = [70.0, 90.0, 80.0, 60.0]


class TestCorrelations:
    def test_spearman_of_two_swaps_is_the_hand_calculation(self) -> None:
        assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)

    def test_spearman_gives_ties_their_mean_rank(self) -> None:
        assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.948683, abs=1e-6)

    @given(distinct, st.randoms(use_true_random=False))
    def test_spearman_without_ties_equals_the_formula_of_squared_rank_differences(
        self, left: list[int], random: Random
    ) -> None:
        right = list(left)
        random.shuffle(right)
        squares = sum((sorted(left).index(a) - sorted(right).index(b)) ** 2 for a, b in zip(left, right, strict=True))
        num = len(left)
        assert spearman(left, right) == pytest.approx(1 - 6 * squares / (num * (num**2 - 1)))

    def test_kendall_counts_concordant_less_discordant_pairs(self) -> None:
        assert kendall([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx((8 - 2) / 10)

    @pytest.mark.parametrize("measure", [spearman, kendall])
    @pytest.mark.parametrize(
        ("left", "right"),
        [([], []), ([1], [1]), ([1, 1, 1], [1, 2, 3]), ([1, 2], [5, 5]), ([1, math.nan, 2], [1, 2, 3])],
    )
    def test_a_side_that_ranks_nothing_gives_nan_without_a_warning(
        self, measure: Measure, left: list[float], right: list[float]
    ) -> None:
        assert math.isnan(measure(left, right))

    def test_a_side_of_one_infinity_alone_ranks_nothing_either(self) -> None:
        assert math.isnan(spearman([math.inf, math.inf], [1, 2]))
        assert math.isnan(kendall([1, 2], [-math.inf, -math.inf]))
        assert spearman([1, math.inf], [1, 2]) == pytest.approx(1)

    def test_tensors_are_taken_as_they_are(self) -> None:
        assert spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])) == pytest.approx(-1)

    @pytest.mark.parametrize("measure", [spearman, kendall])
    def test_sides_of_unequal_length_are_refused(self, measure: Measure) -> None:
        with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
            measure([1, 2], [1, 2, 3])


class TestTopK:
    @pytest.mark.parametrize(("k", "regret"), [(1, 30.0), (2, 20.0), (3, 10.0), (4, 0.0)])
    def test_regret_is_what_the_best_of_the_k_predicted_lacks(self, k: int, regret: float) -> None:
        assert regret_at_k([3, 1, 2, 4], ACTUAL, k) == regret

    @pytest.mark.parametrize(("k", "share"), [(1, 0.0), (2, 0.0), (3, 2 / 3), (4, 1.0)])
    def test_top_k_accuracy_is_the_share_of_the_best_that_was_found(self, k: int, share: float) -> None:
        assert top_k_accuracy([3, 1, 2, 4], ACTUAL, k) == pytest.approx(share)

    def test_nan_predictions_come_last(self) -> None:
        assert regret_at_k([math.nan, 1, 2, 0], ACTUAL, 1) == pytest.approx(10)

    def test_of_equal_predictions_the_earlier_is_taken(self) -> None:
        assert regret_at_k([1, 1, 1, 1], ACTUAL, 2) == 0

    @pytest.mark.parametrize("k", [0, 5])
    def test_a_k_outside_the_values_is_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=f"got {k} for 4"):
            regret_at_k(ACTUAL, ACTUAL, k)

    @given(distinct, st.data())
    def test_a_perfect_prediction_has_no_regret_and_finds_all(self, values: list[int], data: st.DataObject) -> None:
        k = data.draw(st.integers(1, len(values)))
        assert (regret_at_k(values, values, k), top_k_accuracy(values, values, k)) == (0, 1)
