"""The head of a ranking and pilot runs against brute force, and against fresh tasks of a simulated world."""

import math

import numpy as np
import pytest
import torch

from dass.errors import ConfigError, DataError
from dass.meta.calibration import Calibration, TaskEvidence, calibrate
from dass.search.confidence import head_confidence, pilot_runs
from tests.dass.meta.simulated import TEACHER, Values, World


def known(*kinds: tuple[float, float], noise: float | None = None) -> Calibration:
    """A world of tasks with these slopes and sds, each with the same chance."""
    return found_out(*((*kind, (0.0,) * 3) for kind in kinds), noise=noise)


def found_out(
    *kinds: tuple[float, float, tuple[float, ...]], noise: float | None = None, groups: str = "abcdef"
) -> Calibration:
    """The same, with how far the students of each, by falling predictions, are behind the best."""
    tasks = [
        TaskEvidence(str(k), groups[k], TEACHER, (0.0,) * len(behind), behind, slope, sd, 1.0)
        for k, (slope, sd, behind) in enumerate(kinds)
    ]
    return Calibration(tuple(tasks), "points", 1.0, 0.0, noise)


MIXED = known((1.0, 1.0), (0.5, 2.0), (0.0, 1.5))
SCORES = torch.tensor([70.0, 69.5, 69.4, 68.0, 66.0, 60.0])


def brute_force(calibration: Calibration, scores: torch.Tensor, num: int, rng: np.random.Generator) -> Values:
    """True accuracies of simulated tasks, (num, n)."""
    chance, slope, sd = (each.numpy() for each in calibration.likeness())
    kinds = rng.choice(len(chance), size=num, p=chance)
    true: Values = slope[kinds, None] * scores.numpy() + sd[kinds, None] * rng.normal(size=(num, len(scores)))
    return true


class TestHead:
    def test_chances_are_those_of_brute_force(self) -> None:
        true = brute_force(MIXED, SCORES, 100_000, np.random.default_rng(0))
        found = head_confidence(MIXED, SCORES, num=5)
        best = np.bincount(true[:, :5].argmax(axis=1), minlength=5) / len(true)
        assert found.is_best == pytest.approx(best.tolist(), abs=0.007)
        assert found.beats_runner_up == pytest.approx((true[:, 0] > true[:, 1]).mean(), abs=0.007)

    def test_chances_to_be_best_sum_to_1(self) -> None:
        for scores in (SCORES, torch.linspace(0, 90, 50), torch.full((7,), 50.0)):
            assert sum(head_confidence(MIXED, scores, num=50).is_best) == pytest.approx(1, abs=1e-9)

    def test_of_two_the_chance_to_be_best_is_that_to_beat_the_other(self) -> None:
        found = head_confidence(MIXED, SCORES, num=2)
        assert found.is_best[0] == pytest.approx(found.beats_runner_up, abs=1e-9)

    def test_equal_predictions_have_equal_chances(self) -> None:
        assert head_confidence(MIXED, torch.full((4,), 50.0)).is_best == pytest.approx([0.25] * 4)

    def test_neither_order_nor_level_nor_failed_candidates_matter(self) -> None:
        scores = torch.cat([SCORES.flip(0) + 10, torch.tensor([math.nan, -math.inf])])
        assert head_confidence(MIXED, scores).is_best == pytest.approx(head_confidence(MIXED, SCORES).is_best)

    @pytest.mark.parametrize(("lead", "can"), [(2.4, True), (2.2, False)])  # 2.326 is the normal's, at 95 % and sd 1
    def test_the_verdict_is_that_of_the_level(self, lead: float, can: bool) -> None:
        found = head_confidence(known((1.0, 1.0), (1.0, 1.0)), torch.tensor([50.0 + lead, 50.0]))
        assert found.is_distinguishable is can
        assert ("can be told" if can else "cannot be told") in found.verdict
        assert "95 %" in found.verdict

    @pytest.mark.parametrize("change", [{"num": 1}, {"level": 1.0}, {"level": 0.0}])
    def test_settings_out_of_range_are_refused(self, change: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="num must be >= 2"):
            head_confidence(MIXED, SCORES, **change)  # type: ignore[arg-type]

    def test_one_candidate_has_no_runner_up(self) -> None:
        with pytest.raises(DataError, match="at least 2 finite predictions, got 1"):
            head_confidence(MIXED, torch.tensor([1.0, math.nan]))


class TestPilots:
    def test_regrets_are_those_of_the_held_out_tasks(self) -> None:
        """By hand: the winners are 2, 4 and 6 points behind; a group of one task weighs as much as one of two."""
        calibration = found_out(
            (1, 1, (2.0, 3.0, 0.0)), (1, 1, (4.0, 0.0, 5.0)), (1, 1, (6.0, 1.0, 0.0, 9.0)), groups="aab"
        )
        plan = pilot_runs(calibration, within_pct=1.0)
        assert plan.regrets_pct == pytest.approx((4.5, 4.5, 1.0, 0.0))
        assert (plan.runs, plan.is_enough, plan.students) == (2, True, 3)
        assert (plan.before_pct, plan.after_pct) == pytest.approx((4.5, 1.0))

    def test_on_fresh_tasks_the_regret_is_as_foretold(self) -> None:
        world, rng = World(useless=0.2), np.random.default_rng(2)
        plan = pilot_runs(calibrate(world.held_out(rng, 60, 40)), within_pct=1.0)
        found: list[float] = []
        for _ in range(200):
            predicted, _, shown = world.draw(rng, 40)
            found.append(shown.max() - shown[np.argsort(-predicted)[: max(1, plan.runs)]].max())
        reach = 3.5 * float(np.std(found)) * math.sqrt(1 / 200 + 1 / 60)
        assert plan.after_pct == pytest.approx(float(np.mean(found)), abs=reach)

    def test_a_winner_that_is_near_enough_needs_none(self) -> None:
        plan = pilot_runs(found_out((1, 1, (0.2, 0.0, 3.0)), (1, 1, (0.4, 0.0, 3.0))))
        assert (plan.runs, plan.is_enough) == (0, True)

    def test_where_a_ranking_needs_some_there_are_so_many_at_least(self) -> None:
        evidence = found_out((1, 1, (0.2, 0.1, 0.0, 3.0)), (1, 1, (0.4, 0.1, 0.0, 3.0)))
        plan = pilot_runs(evidence, least=2)
        assert (plan.runs, plan.is_enough) == (2, True)
        assert plan.before_pct == pytest.approx(0.3)
        assert plan.after_pct == pytest.approx(0.1)
        assert pilot_runs(evidence, within_pct=0.05, least=2).runs == 3

    def test_where_the_most_are_not_enough_it_says_so(self) -> None:
        behind = tuple(float(9 - place) for place in range(10))
        plan = pilot_runs(found_out((1, 1, behind), (1, 1, behind)), max_runs=4)
        assert (plan.runs, plan.is_enough, plan.after_pct) == (4, False, 6.0)
        assert len(plan.regrets_pct) == 5

    @pytest.mark.parametrize(
        "change", [{"within_pct": 0.0}, {"max_runs": 0}, {"within_pct": math.nan}, {"least": -1}, {"least": 21}]
    )
    def test_settings_out_of_range_are_refused(self, change: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="within_pct must be > 0"):
            pilot_runs(MIXED, **change)  # type: ignore[arg-type]


def test_predictions_on_another_device_will_do() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert head_confidence(MIXED, SCORES.to(device)).is_best == pytest.approx(head_confidence(MIXED, SCORES).is_best)
