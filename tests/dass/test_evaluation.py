import math
from itertools import combinations
from statistics import fmean
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dass.errors import ConfigError
from dass.evaluation import (
    METRICS,
    EvaluateConfig,
    Interval,
    Judged,
    ceiling,
    interval,
    judge,
    label_noise_pct,
    macs_bands,
    ranked,
    redraw,
    spearman_in_bands,
    summarise,
)
from dass.metrics import half_width, spearman_of_rows

students = st.integers(12, 60).flatmap(
    lambda num: st.tuples(*(st.lists(st.integers(0, 20), min_size=num, max_size=num) for _ in range(3)))
)
SCORES = [0.9, 0.1, 0.8, -math.inf, 0.3, 0.7, 0.7, 0.2]
TRUTH = [60.0, 95.0, 70.0, 99.0, 65.0, 80.0, 90.0, 50.0]


def judged(spearman: float) -> Judged:
    return Judged(spearman, spearman / 2, 0.0, 1.0, 0.0, 0.5, 2.0)


class TestJudge:
    @given(students)
    def test_correlations_are_those_of_scipy_and_regrets_those_of_brute_force(
        self, drawn: tuple[list[int], list[int], list[int]]
    ) -> None:
        scores, truth, macs = ([float(value) for value in side] for side in drawn)
        found = judge(scores, truth, macs)
        if len(set(scores)) > 1 and len(set(truth)) > 1:
            assert found.spearman == pytest.approx(stats.spearmanr(scores, truth).statistic)
            assert found.kendall == pytest.approx(stats.kendalltau(scores, truth, variant="b").statistic)
        else:
            assert math.isnan(found.spearman)
            assert math.isnan(found.kendall)
        for k, regret in ((1, found.regret_1), (5, found.regret_5)):
            left, top = list(range(len(scores))), []
            for _ in range(k):  # take the best that is left, the earlier of equals, one at a time
                best = left[0]
                for index in left[1:]:
                    if scores[index] > scores[best]:
                        best = index
                left.remove(best)
                top.append(best)
            assert regret == max(truth) - max(truth[index] for index in top)

    def test_a_failed_student_ranks_last(self) -> None:
        found = judge(SCORES, TRUTH, range(8))
        lowest = [-5.0 if score == -math.inf else score for score in SCORES]
        assert found == judge(lowest, TRUTH, range(8))
        assert (found.regret_1, found.regret_5) == (99 - 60, 99 - 90)

    def test_of_equal_scores_the_earlier_student_counts_as_better(self) -> None:
        assert judge([1.0] * 6, [10, 20, 30, 40, 50, 60], range(6)).regret_1 == 50

    def test_too_few_students_for_five_are_refused(self) -> None:
        with pytest.raises(ValueError, match="k must be between 1 and the number of values, got 5 for 4"):
            judge([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4])


class TestBands:
    @given(students, st.sampled_from([None, 1, 2, 3, 4, 7]))
    def test_they_equal_brute_force(self, drawn: tuple[list[int], list[int], list[int]], num_bands: int | None) -> None:
        scores, truth, macs = drawn
        num, total = len(macs), num_bands or (5 if len(macs) >= 50 else 3)
        order = sorted(range(num), key=lambda index: (macs[index], index))
        sizes = [num // total + (band < num % total) for band in range(total)]
        weighted, weight = 0.0, 0
        for band, size in enumerate(sizes):
            inside = order[sum(sizes[:band]) : sum(sizes[:band]) + size]
            if size < 4 or len({truth[index] for index in inside}) == 1:
                continue
            of_scores, of_truth = ([side[index] for index in inside] for side in (scores, truth))
            if len(set(of_scores)) == 1:
                weighted = math.nan
            else:
                weighted += size * stats.spearmanr(of_scores, of_truth).statistic
            weight += size
        found = spearman_in_bands(scores, truth, macs, num_bands)
        assert found == pytest.approx(weighted / weight if weight else math.nan, nan_ok=True)

    def test_size_alone_cannot_win_within_bands(self) -> None:
        macs = np.repeat([1.0, 2.0, 3.0], 20)
        truth = 10 * macs + np.tile(
            np.arange(20) / 20, 3
        )  # above all a matter of size; inside a band of something else
        by_size = macs + np.tile(np.random.default_rng(0).permutation(20), 3) * 1e-3
        assert stats.spearmanr(by_size, truth).statistic > 0.85
        assert abs(spearman_in_bands(by_size, truth, macs, 3)) < 0.5
        assert spearman_in_bands(truth, truth, macs, 3) == pytest.approx(1)

    @pytest.mark.parametrize(("num", "bands"), [(49, 3), (50, 5), (6, 3)])
    def test_five_from_fifty_students_on(self, num: int, bands: int) -> None:
        found = macs_bands(range(num, 0, -1))
        assert len(found) == bands
        assert np.concatenate(found).tolist() == list(range(num - 1, -1, -1))

    def test_too_small_bands_are_undefined(self) -> None:
        assert math.isnan(spearman_in_bands(range(9), range(9), range(9)))

    def test_sides_of_unequal_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\(3,\), \(3,\) and \(2,\)"):
            spearman_in_bands([1, 2, 3], [1, 2, 3], [1, 2])

    def test_no_band_at_all_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"evaluate\.bands must be >= 1, got 0"):
            EvaluateConfig(bands=0)
        with pytest.raises(ConfigError, match=r"evaluate.short_epochs must be >= 1, got 0"):
            EvaluateConfig(short_epochs=0)


class TestRepeats:
    @given(st.lists(st.floats(-1, 1), min_size=2, max_size=6))
    def test_an_interval_is_students_t(self, values: list[float]) -> None:
        found = interval(values)
        assert found.mean is not None
        assert found.low is not None
        assert found.high is not None
        if np.ptp(values) > 1e-6:
            expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        else:
            assert found.low == pytest.approx(found.high, abs=1e-4)

    def test_three_values_by_the_table_of_students_t(self) -> None:
        assert half_width([1, 2, 3]) == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
        with pytest.raises(ValueError, match="at least 2 values"):
            half_width([1])

    def test_a_value_alone_has_no_interval_and_an_undefined_one_no_mean(self) -> None:
        assert vars(interval([0.5])) == {"mean": 0.5, "low": None, "high": None}
        assert vars(interval([0.5, math.nan])) == {"mean": None, "low": None, "high": None}

    def test_a_mean_over_targets_has_the_interval_of_the_means_of_each_seed(self) -> None:
        repeats = {"a": [0.1, 0.2, 0.6], "b": [0.9, 0.7, 0.2]}
        found = summarise("x", "trivial", {name: [judged(s) for s in values] for name, values in repeats.items()})
        assert found.overall["spearman"] == interval([0.5, 0.45, 0.4])
        assert found.by_target["b"]["spearman_in_bands"] == interval([0.45, 0.35, 0.1])
        assert set(found.overall) == set(found.by_target["a"]) == set(METRICS)

    def test_the_best_mean_comes_first_and_an_undefined_one_last(self) -> None:
        found = [
            summarise(name, "trivial", {"a": [judged(s)]}) for name, s in (("u", math.nan), ("l", 0.1), ("h", 0.2))
        ]
        assert [summary.name for summary in ranked(found)] == ["h", "l", "u"]


def covers(found: Interval, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


class TestCeiling:
    def test_rows_have_the_spearman_of_scipy(self) -> None:
        rng = np.random.default_rng(0)
        left, right = rng.integers(0, 6, (20, 9)).astype(float), rng.normal(size=(20, 9))
        right[3] = 1.0
        found = spearman_of_rows(left, right)
        assert math.isnan(found[3])
        for row in set(range(20)) - {3}:
            assert found[row] == pytest.approx(stats.spearmanr(left[row], right[row]).statistic)

    @pytest.mark.parametrize(
        ("draw", "noise", "too_high"),
        [("normal", 0.3, 0.02), ("normal", 2.0, 0.04), ("exponential", 0.3, 0.02), ("exponential", 1.0, 0.08)],
    )
    def test_a_simulated_perfect_method_reaches_it(self, draw: str, noise: float, too_high: float) -> None:
        """The label-free truth m is known here, so its Spearman with single runs can be measured.

        Where noise of another shape hides that of the students, the ceiling is known less well, and comes out too high.
        """
        rng = np.random.default_rng(1)
        means = getattr(rng, draw)(size=400)
        runs = means[:, None] + noise * rng.normal(size=(400, 3))
        found = ceiling(runs.tolist())
        assert found is not None
        measured = fmean(stats.spearmanr(means, runs[:, run]).statistic for run in range(3))
        between = fmean(stats.spearmanr(runs[:, a], runs[:, b]).statistic for a, b in combinations(range(3), 2))
        assert found.between_runs.mean == pytest.approx(between, abs=0.02)
        assert found.of_perfect.mean is not None
        assert measured - 0.02 <= found.of_perfect.mean <= measured + too_high
        assert (found.students, found.runs) == (400, 1200)

    def test_it_is_of_all_students_though_those_that_ran_twice_are_much_alike(self) -> None:
        rng = np.random.default_rng(3)
        means = np.concatenate([rng.normal(0, 0.2, size=100), rng.normal(0, 3, size=300)])
        runs = means[:, None] + 0.5 * rng.normal(size=(400, 2))
        found = ceiling([each[: 2 if index < 100 else 1] for index, each in enumerate(runs.tolist())])
        assert found is not None
        assert found.of_perfect.mean == pytest.approx(stats.spearmanr(means, runs[:, 0]).statistic, abs=0.03)
        assert found.between_runs.high is not None
        assert found.between_runs.high < 0.5

    def test_the_intervals_cover_the_truth_about_as_often_as_they_say(self) -> None:
        r = 1 / (1 + 0.5**2)  # Pearson of two runs; of a run and the mean of all it is sqrt(r)
        between, perfect = (6 / math.pi * math.asin(pearson / 2) for pearson in (r, math.sqrt(r)))
        rng = np.random.default_rng(2)
        covered = np.zeros(2)
        for _ in range(12):
            runs = rng.normal(size=(40, 1)) + 0.5 * rng.normal(size=(40, 2))
            found = ceiling([each[: 1 + index % 2] for index, each in enumerate(runs.tolist())])
            assert found is not None
            covered += [covers(found.between_runs, between), covers(found.of_perfect, perfect)]
        assert (covered >= 8).all()

    def test_without_noise_it_is_one_and_with_noise_alone_it_is_low(self) -> None:
        without = ceiling([[value, value] for value in (1.0, 4.0, 2.0, 3.0, 9.0)])
        assert without is not None
        assert without.of_perfect.mean == pytest.approx(1)
        noise = ceiling([[1.0, 4.0], [4.0, 1.0], [2.0, 3.0], [3.0, 2.0]] * 5)
        assert noise is not None
        assert noise.between_runs.mean is not None
        assert noise.between_runs.mean < -0.5
        assert noise.of_perfect.mean == 0

    def test_too_few_students_with_several_runs_give_none(self) -> None:
        several = [[1.0, 2.0], [3.0, 4.0], [5.0, 5.5]]
        assert ceiling([*several, [7.0]]) is None
        found = ceiling([*several, [7.0], [8.0, 9.0, 7.0]])
        assert found is not None
        assert (found.students, found.runs) == (4, 9)
        assert ceiling([[1.0, 1.0]] * 9) is None


class TestLabelNoise:
    def test_it_is_the_sd_from_run_to_run_whatever_the_students(self) -> None:
        rng = np.random.default_rng(0)
        runs = rng.normal(60, 15, size=(4000, 1)) + 1.7 * rng.normal(size=(4000, 3))
        mixed = [tuple(each[: 2 + index % 2]) for index, each in enumerate(runs.tolist())]
        assert label_noise_pct(mixed) == pytest.approx(1.7, rel=0.05)

    def test_by_hand(self) -> None:
        pairs = [(50.0, 52.0), (70.0, 70.0), (20.0, 24.0), (33.0, 33.0), (99.0,)]
        assert label_noise_pct(pairs) == pytest.approx(math.sqrt((2 + 0 + 8 + 0) / 4))

    def test_a_few_students_do_not_tell(self) -> None:
        assert label_noise_pct([(50.0, 52.0)] * 3 + [(1.0,)] * 9) is None


class TestRedraw:
    names = tuple("abcdefghijklmnopqrstuvwxyz")
    rng = np.random.default_rng(1)
    truth = rng.normal(size=26)
    noisy, other = truth + rng.normal(size=26), rng.normal(size=26)
    labels: ClassVar = dict(zip(names, truth.tolist(), strict=True))

    def test_the_interval_is_that_of_scipys_spearman_over_draws(self) -> None:
        found = redraw({"noisy": {"t": [self.noisy]}}, {"t": self.labels})["noisy"].spearman
        draws = np.random.default_rng(5).integers(26, size=(1000, 26))
        each = [stats.spearmanr(self.noisy[draw], self.truth[draw]).statistic for draw in draws]
        expected = (np.mean(each), *np.quantile(each, (0.025, 0.975)))
        assert (found.mean, found.low, found.high) == pytest.approx(expected, abs=0.05)

    def test_students_that_targets_share_are_drawn_on_all_of_them_together(self) -> None:
        of_order = dict(reversed(self.labels.items()))  # the same students, listed otherwise
        both = {"one": [self.noisy], "again": [self.noisy[::-1]]}
        found = redraw({"noisy": both}, {"one": self.labels, "again": of_order})
        assert found == redraw({"noisy": {"one": [self.noisy]}}, {"one": self.labels})
        others = {f"{name}2": value for name, value in self.labels.items()}
        apart = redraw({"noisy": {"one": [self.noisy], "two": [self.noisy]}}, {"one": self.labels, "two": others})
        together, independent = found["noisy"].spearman, apart["noisy"].spearman
        assert None not in (together.low, together.high, independent.low, independent.high)
        assert independent.high - independent.low < 0.9 * (together.high - together.low)  # type: ignore[operator]

    def test_what_a_method_lacks_is_to_the_first_one_under_the_same_draws(self) -> None:
        scores = {
            name: {"t": [values]}
            for name, values in (("truth", self.truth), ("noisy", self.noisy), ("other", self.other))
        }
        found = redraw(scores, {"t": self.labels})
        assert found["truth"].spearman == Interval(1.0, 1.0, 1.0)
        assert found["truth"].behind == Interval(0.0, 0.0, 0.0)
        behind, noisy = found["noisy"].behind, found["noisy"].spearman
        assert behind.mean == pytest.approx(1 - noisy.mean)  # type: ignore[operator]
        assert behind.low == pytest.approx(1 - noisy.high)  # type: ignore[operator]
        assert 0 < behind.low < found["other"].behind.low  # type: ignore[operator]

    def test_seeds_are_averaged_failed_students_rank_last_and_what_ranks_nothing_is_undefined(self) -> None:
        least = np.where(self.noisy == self.noisy.min(), -math.inf, self.noisy)
        labels = {"t": self.labels}
        plain = redraw({"m": {"t": [self.noisy]}}, labels)
        assert redraw({"m": {"t": [least, self.noisy]}}, labels) == plain
        assert redraw({"m": {"t": [np.ones(26)]}}, labels)["m"].spearman == Interval(None)
