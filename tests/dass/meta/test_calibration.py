"""Intervals and pair probabilities against simulated worlds, brute force and hand calculations."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from dass.errors import ConfigError, DataError, SchemaTooNewError, StoreError
from dass.meta.calibration import Calibration, TaskEvidence, calibrate
from dass.meta.calibration_file import CALIBRATION_VERSION, from_document, to_document
from dass.meta.held_out import HeldOut
from tests.dass.meta.simulated import TEACHER, Values, World


def binomial_reach(share: float, num: int) -> float:
    """Beyond which a share of `num` draws lies in 1 of 10,000 cases."""
    return 3.9 * math.sqrt(share * (1 - share) / num)


def small(*errors: tuple[float, ...], groups: tuple[str, ...] | None = None) -> Calibration:
    """Tasks with these errors, the best predicted first."""
    found = []
    for index, each in enumerate(errors):
        predicted = tuple(60.0 - place for place in range(len(each)))
        actual = tuple(p + e for p, e in zip(predicted, each, strict=True))
        found.append(HeldOut(str(index), groups[index] if groups else str(index), TEACHER, predicted, actual))
    return calibrate(found)


def evidence_alone(found: list[HeldOut]) -> Calibration:
    """The calibration by which intervals are made, without the search for the temperature, which they do not use."""
    tasks = []
    for each in found:
        predicted, actual = np.array(each.predicted_pct), np.array(each.accuracies_pct)
        order = np.argsort(-predicted)
        errors, behind = (actual - predicted)[order], (actual.max() - actual)[order]
        kept = tuple(errors.tolist()), tuple(behind.tolist())
        tasks.append(TaskEvidence(each.name, each.group, TEACHER, *kept, 1.0, 1.0, 1.0))
    return Calibration(tuple(tasks), "points", 1.0, 0.0)


class TestIntervals:
    def test_errors_are_kept_by_falling_predictions(self) -> None:
        found = World().held_out(np.random.default_rng(18), 4, 10)
        for ours, expected in zip(calibrate(found).tasks, evidence_alone(found).tasks, strict=True):
            assert ours.errors_pct == pytest.approx(expected.errors_pct, abs=1e-4)
            assert ours.behind_pct == pytest.approx(expected.behind_pct, abs=1e-4)

    @pytest.mark.parametrize(("level", "per_group"), [(0.8, 1), (0.6, 1), (0.6, 2)])
    def test_it_covers_students_of_new_tasks_as_often_as_it_says(self, level: float, per_group: int) -> None:
        rng, world, num = np.random.default_rng(0), World(), 1000
        groups, hits = 9, 0
        for _ in range(num):
            calibration = evidence_alone(world.held_out(rng, groups * per_group, 6, per_group))
            predicted, _, shown = world.draw(rng, 1 + 5)
            found = calibration.interval(predicted[0], level)
            assert found is not None
            hits += found[0] <= shown[0] <= found[1]
        share = hits / num
        # at least the level; at most what the weight of one more group adds on either side of the quantile
        assert level - binomial_reach(level, num) <= share
        assert share <= level + 2 / (groups + 1) + binomial_reach(level, num)

    def test_it_covers_students_that_were_chosen_for_their_predictions(self) -> None:
        rng, world, num, level = np.random.default_rng(1), World(slopes=(0.1, 0.3), level_sd=1.0), 1000, 0.8
        hits, naive = 0, 0
        for _ in range(num):
            calibration = evidence_alone(world.held_out(rng, 12, 20))
            predicted, _, shown = world.draw(rng, 20)
            best = predicted.argmax()
            error = abs(shown[best] - predicted[best])
            chosen, all_alike = calibration.half_width_pct(level, top_share=0.05), calibration.half_width_pct(level)
            assert chosen is not None
            assert all_alike is not None
            hits, naive = hits + (error <= chosen), naive + (error <= all_alike)
        assert hits / num >= level - binomial_reach(level, num)
        assert naive / num < level - binomial_reach(level, num)  # or the test would show nothing

    def test_its_half_width_is_that_of_a_hand_calculation(self) -> None:
        # each group weighs 1/4; sizes by rising order 1 (1/8), 2 (1/4), 3 (1/8), 4 (1/12 x 3): 0.125, .375, .5, .75
        calibration = small((1.0, -3.0, 3.0, -1.0), (2.0, -2.0, 2.0), (4.0, 4.0, -4.0))
        levels = {0.1: 1.0, 0.125: 1.0, 0.3: 2.0, 0.375: 2.0, 0.4: 3.0, 0.5: 3.0, 0.6: 4.0, 0.75: 4.0, 0.76: None}
        for level, expected in levels.items():
            assert calibration.half_width_pct(level) == (None if expected is None else pytest.approx(expected))

    def test_tasks_of_one_group_share_its_weight(self) -> None:
        calibration = small((1.0,) * 3, (2.0,) * 3, (3.0,) * 3, groups=("a", "a", "b"))
        assert calibration.reachable_level == pytest.approx(2 / 3)
        levels = {1 / 6: 1.0, 0.17: 2.0, 1 / 3: 2.0, 0.34: 3.0, 2 / 3: 3.0, 0.67: None}
        assert {level: calibration.half_width_pct(level) for level in levels} == pytest.approx(levels)

    def test_a_task_unlike_all_is_one_more_of_those_elsewhere(self) -> None:
        others = [
            HeldOut(f"set {e}", f"set {e}", TEACHER, (60.0, 59.0, 58.0), (60 + e, 59 + e, 58 + e)) for e in (2, 5, 1, 9)
        ]
        found = World().held_out(np.random.default_rng(19), 4, 8)
        calibration = calibrate(found, elsewhere=others)
        assert dataclasses.replace(calibration, elsewhere=()) == calibrate(found)
        away = calibration.away(0.8)
        assert away is not None
        assert {level: away.half_width_pct(level) for level in (0.2, 0.4, 0.6, 0.8)} == pytest.approx(
            {0.2: 1.0, 0.4: 2.0, 0.6: 5.0, 0.8: 9.0}
        )
        but_one = calibration.away(0.75, but="set 9")
        assert but_one is not None
        assert but_one.half_width_pct(0.75) == pytest.approx(5.0)
        assert calibration.away(0.8, but="set 9") is None  # three groups vouch for 3 / 4
        assert calibrate(found, elsewhere=others[:1]).away(0.1) is None
        with pytest.raises(DataError, match=r"and \['set 2', 'set 2'\] elsewhere"):
            calibrate(found, elsewhere=[others[0], others[0]])

    def test_a_level_that_few_tasks_cannot_vouch_for_has_no_interval(self) -> None:
        calibration = calibrate(World().held_out(np.random.default_rng(2), 5, 10))
        assert calibration.reachable_level == pytest.approx(5 / 6)
        assert calibration.interval(50.0, 0.9) is None
        with pytest.raises(
            ConfigError, match=r"5 groups of tasks vouch for intervals of a level up to 0\.833, got 0\.9"
        ):
            calibration.coverage(torch.zeros(3), torch.zeros(3), 0.9)
        assert calibration.interval(50.0, 0.83) is not None

    def test_accuracies_end_at_0_and_100(self) -> None:
        calibration = small((9.0, 9.0, -9.0), (9.0, 9.0, -9.0))
        assert calibration.interval(95.0, 0.5) == (86.0, 100.0)
        assert calibration.interval(4.0, 0.5) == (0.0, 13.0)
        assert calibration.interval(120.0, 0.5) == (100.0, 100.0)

    def test_coverage_is_the_share_within_the_interval(self) -> None:
        calibration = small((2.0, 2.0, -2.0), (2.0, 2.0, -2.0))
        predicted = torch.tensor([50.0, 50.0, 50.0, 50.0])
        assert calibration.coverage(predicted, torch.tensor([48.5, 51.9, 52.5, 40.0]), 0.5) == (2.0, 0.5)

    def test_coverage_of_those_predicted_best_is_by_the_errors_of_such(self) -> None:
        calibration = small((0.5, 9.0, 9.0), (0.5, -9.0, 9.0))
        predicted = torch.full((2, 2), 50.0)
        accuracies = torch.tensor([50.4, 49.0])
        assert calibration.coverage(predicted, accuracies, 0.5) == (9.0, 1.0)
        assert calibration.coverage(predicted, accuracies, 0.5, top_share=0.1) == (0.5, 0.5)

    @pytest.mark.parametrize(("level", "share"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.0), (0.5, 1.1), (math.nan, 1.0)])
    def test_levels_and_shares_that_are_none_are_refused(self, level: float, share: float) -> None:
        with pytest.raises(ConfigError, match="a level in"):
            small((1.0,) * 3, (1.0,) * 3).half_width_pct(level, share)


GAPS = torch.tensor([0.25, 1.0, 2.0, 4.0, 7.0])


def frequencies(world: World, *, noise: float = 0.0, tasks: int = 1500, pairs: int = 150) -> Values:
    """How often on fresh tasks one of two students, predicted so much better, is better: (tasks, GAPS)."""
    rng = np.random.default_rng(99)
    slopes, sds = (kind[:, None, None] for kind in world.kinds(rng, tasks))
    shape = (tasks, pairs, len(GAPS))
    first, second = (sds * world.residuals(rng, shape) + noise * rng.normal(size=shape) for _ in range(2))
    won: Values = (slopes * GAPS.numpy() + first > second).mean(axis=1)
    return won


class TestPairs:
    @pytest.mark.parametrize(
        "world",
        [World(), World(useless=0.3), World(slopes=(0.0, 2.0)), World(spreads=(1.0, 6.0))],
        ids=["plain", "some tasks useless", "any slope", "any spread"],
    )
    def test_its_word_is_the_frequency_on_fresh_tasks(self, world: World) -> None:
        calibration = calibrate(world.held_out(np.random.default_rng(3), 40, 30))
        assert calibration.unit == "points"
        won = frequencies(world)
        reach = 3 * won.std(axis=0) / math.sqrt(40)  # the tasks learned from are a sample too
        assert np.all(np.abs(calibration.probability_better(GAPS).numpy() - won.mean(axis=0)) <= reach)

    def test_a_student_as_often_better_as_not_has_a_gap_of_0_and_chances_rise_with_the_gap(self) -> None:
        calibration = calibrate(World().held_out(np.random.default_rng(4), 5, 20))
        chances = calibration.probability_better(torch.linspace(-20, 20, 81))
        assert chances[40] == 0.5
        assert (chances.diff() > 0).all()
        assert torch.allclose(chances + chances.flip(0), torch.ones(81, dtype=torch.float64))

    def test_residuals_that_are_not_normal_hardly_mislead_it(self) -> None:
        world = World(heavy_tails=True)
        calibration = calibrate(world.held_out(np.random.default_rng(19), 25, 30))
        assert calibration.temperature < 1  # least squares think of a few students far out, pairs of the many near
        share = frequencies(world).mean(axis=0)
        assert calibration.probability_better(GAPS).tolist() == pytest.approx(share.tolist(), abs=0.04)

    def test_tasks_that_are_all_alike_give_the_normal_distribution(self) -> None:
        world = World(slopes=(0.8, 0.8), sds=(2.0, 2.0))
        calibration = calibrate(world.held_out(np.random.default_rng(5), 20, 150))
        expected = [0.5 * (1 + math.erf(0.8 * gap / (2 * math.sqrt(2)) / math.sqrt(2))) for gap in GAPS.tolist()]
        assert calibration.probability_better(GAPS).tolist() == pytest.approx(expected, abs=0.02)

    def test_its_temperature_is_that_by_which_groups_foretell_each_other_best(self) -> None:
        found = World(useless=0.3).held_out(np.random.default_rng(20), 8, 10, per_group=2)
        calibration = calibrate(found)
        lines = {each.name: (each.slope, each.sd_pct) for each in calibration.tasks}

        def loss(temperature: float) -> float:
            losses = []
            for task in found:
                others = [lines[each.name] for each in found if each.group != task.group]
                for i, j in itertools.combinations(range(10), 2):
                    gap = task.predicted_pct[i] - task.predicted_pct[j]
                    chances = [
                        NormalDist().cdf(gap * slope / (temperature * sd * math.sqrt(2))) for slope, sd in others
                    ]
                    chance = sum(chances) / len(chances)
                    losses.append(-math.log(chance if task.accuracies_pct[i] > task.accuracies_pct[j] else 1 - chance))
            return sum(losses) / len(losses)

        assert calibration.unit == "points"
        assert calibration.pair_log_loss == pytest.approx(loss(calibration.temperature), rel=1e-6)
        assert calibration.pair_log_loss <= min(map(loss, (0.6, 0.8, 1.0, 1.5, 2.5, 4.0))) + 1e-6

    def test_a_task_upside_down_makes_it_doubt(self) -> None:
        rng = np.random.default_rng(6)
        good = World(slopes=(1.0, 1.0), sds=(0.5, 0.5)).held_out(rng, 4, 30)
        upside_down = dataclasses.replace(good[3], accuracies_pct=tuple(120 - y for y in good[3].accuracies_pct))
        sure, doubtful = calibrate(good), calibrate([*good[:3], upside_down])
        assert sure.probability_better(torch.tensor(3.0)) > 0.99
        assert doubtful.probability_better(torch.tensor(3.0)) < 0.9
        assert doubtful.pair_log_loss > sure.pair_log_loss

    def test_the_level_of_a_whole_task_does_not_matter(self) -> None:
        found = World().held_out(np.random.default_rng(7), 6, 25)
        moved = [
            dataclasses.replace(each, accuracies_pct=tuple(y + 5 * index for y in each.accuracies_pct))
            for index, each in enumerate(found)
        ]
        before, after = calibrate(found), calibrate(moved)
        assert torch.allclose(before.probability_better(GAPS), after.probability_better(GAPS), atol=1e-9)
        assert after.within_sd_pct == pytest.approx(before.within_sd_pct, abs=1e-3)
        assert after.half_width_pct(0.8) != pytest.approx(before.half_width_pct(0.8))

    def test_gaps_are_measured_by_what_the_held_out_tasks_show(self) -> None:
        rng = np.random.default_rng(8)
        by_spread = calibrate(World(per_spread=True, spreads=(0.5, 8.0)).held_out(rng, 15, 40))
        by_points = calibrate(World(spreads=(0.5, 8.0)).held_out(rng, 15, 40))
        assert (by_spread.unit, by_points.unit) == ("spread", "points")
        narrow, wide = (by_spread.probability_better(torch.tensor(0.5), spread_pct=s) for s in (0.5, 5.0))
        assert narrow > 0.85 > 0.6 > wide
        assert by_spread.probability_better(torch.tensor(5.0), spread_pct=5.0) == pytest.approx(float(narrow))
        with pytest.raises(ConfigError, match="spread"):
            by_spread.probability_better(torch.tensor(1.0))

    def test_with_the_label_noise_known_it_speaks_of_what_many_runs_would_show(self) -> None:
        world = World(label_noise=2.0, sds=(1.5, 1.5))
        found = world.held_out(np.random.default_rng(9), 40, 30)
        blind, knowing = calibrate(found), calibrate(found, label_noise_pct=2.0)
        for calibration, noise in ((blind, 2.0), (knowing, 0.0)):
            share = frequencies(world, noise=noise).mean(axis=0)
            assert calibration.probability_better(GAPS).tolist() == pytest.approx(share.tolist(), abs=0.03)

    def test_noise_larger_than_all_that_was_seen_does_not_make_it_certain(self) -> None:
        found = World().held_out(np.random.default_rng(10), 5, 20)
        sds = calibrate(found, label_noise_pct=50.0).likeness().sd_pct / calibrate(found).likeness().sd_pct
        assert sds.tolist() == pytest.approx([math.sqrt(0.1)] * 5)

    def test_a_predictor_without_an_opinion_says_one_half(self) -> None:
        rng = np.random.default_rng(11)
        found = [dataclasses.replace(each, predicted_pct=(50.0,) * 10) for each in World().held_out(rng, 4, 10)]
        assert calibrate(found).probability_better(GAPS).tolist() == [0.5] * 5

    def test_the_spread_within_tasks_is_that_of_the_world(self) -> None:
        world = World(slopes=(1.0, 1.0), sds=(1.5, 1.5), level_sd=20.0)
        found = world.held_out(np.random.default_rng(12), 30, 200)
        assert calibrate(found).within_sd_pct == pytest.approx(1.5, rel=0.03)

    def test_the_device_of_the_gaps_is_that_of_the_chances(self) -> None:
        gaps = torch.ones(2, 3, device="cuda" if torch.cuda.is_available() else "cpu")
        chances = small((1.0, -1.0, 1.0), (1.0, 1.0, 0.0)).probability_better(gaps)
        assert (chances.device, chances.shape) == (gaps.device, gaps.shape)


class TestRefusals:
    def test_fewer_than_two_groups_tell_nothing_of_a_third(self) -> None:
        found = World().held_out(np.random.default_rng(14), 4, 10, per_group=4)
        with pytest.raises(DataError, match="at least 2 groups"):
            calibrate(found)

    def test_two_students_of_a_task_are_too_few(self) -> None:
        with pytest.raises(DataError, match="at least 3 students, got 2"):
            small((1.0, 2.0), (1.0, 2.0))

    def test_a_task_counts_once(self) -> None:
        found = World().held_out(np.random.default_rng(15), 3, 10)
        with pytest.raises(DataError, match="different tasks"):
            calibrate([*found, found[0]])

    @pytest.mark.parametrize("predicted", [(1.0, math.nan), (1.0,), (math.inf, 1.0)])
    def test_predictions_must_be_finite_and_as_many_as_accuracies(self, predicted: tuple[float, ...]) -> None:
        with pytest.raises(DataError, match="finite predictions"):
            HeldOut("a", "a", TEACHER, predicted, (1.0, 2.0))

    @pytest.mark.parametrize("noise", [-1.0, math.nan])
    def test_label_noise_is_no_negative_number(self, noise: float) -> None:
        with pytest.raises(DataError, match="label noise"):
            calibrate(World().held_out(np.random.default_rng(16), 3, 10), label_noise_pct=noise)


def set_in(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = to

    return change


DAMAGES: dict[str, Callable[[Any], Any]] = {
    "a field is missing": lambda document: document.pop("unit"),
    "a task's field is missing": lambda document: document["tasks"][0].pop("slope"),
    "an unknown field": set_in("more", to=1),
    "an unknown field of a task": set_in("tasks", 0, "more", to=1.0),
    "an unknown field of a teacher": set_in("tasks", 0, "teacher", "more", to=1.0),
    "an unknown unit": set_in("unit", to="metres"),
    "a unit that is a list": set_in("unit", to=["points"]),
    "an unknown sampler": set_in("sampler", to="best"),
    "a sampler that is a list": set_in("sampler", to=["uniform"]),
    "not finite": set_in("temperature", to=math.nan),
    "no temperature": set_in("temperature", to=0.0),
    "an error that is not finite": set_in("tasks", 1, "errors_pct", 0, to=math.inf),
    "an integer beyond all floats": set_in("tasks", 1, "errors_pct", 0, to=10**400),
    "a text for a number": set_in("tasks", 1, "sd_pct", to="1.0"),
    "a truth value for a number": set_in("tasks", 1, "sd_pct", to=True),
    "a text for a list": set_in("tasks", 1, "errors_pct", to="123"),
    "a negative sd": set_in("tasks", 1, "sd_pct", to=-1.0),
    "too few errors": set_in("tasks", 1, "errors_pct", to=[1.0, 2.0]),
    "a distance from the best too few": set_in("tasks", 1, "behind_pct", to=[0.0, 2.0]),
    "nobody who is the best": set_in("tasks", 1, "behind_pct", 0, to=-1.0),
    "a statistic too few": set_in("tasks", 1, "teacher", "map_statistics", to=[1.0]),
    "a teacher above 100 %": set_in("tasks", 1, "teacher", "accuracy_pct", to=101.0),
    "one task alone": lambda document: document["tasks"].__delitem__(slice(1, None)),
    "tasks that are none": set_in("tasks", to=None),
    "tasks elsewhere that are none": set_in("elsewhere", to=None),
    "a task elsewhere that is none": set_in("elsewhere", to=[3]),
    "a task that is none": set_in("tasks", 0, to=3),
    "a name that is none": set_in("tasks", 0, "name", to=None),
    "no version": lambda document: document.pop("version"),
}


class TestDocuments:
    CALIBRATION = calibrate(World().held_out(np.random.default_rng(17), 4, 8), label_noise_pct=0.3)

    @pytest.mark.parametrize("noise", [0.3, None])
    def test_a_calibration_comes_back_equal_from_json(self, noise: float | None) -> None:
        elsewhere = self.CALIBRATION.tasks[:2]
        calibration = dataclasses.replace(self.CALIBRATION, label_noise_pct=noise, elsewhere=elsewhere)
        document = json.loads(json.dumps(to_document(calibration), allow_nan=False))
        assert from_document(document) == calibration

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_a_damaged_one_is_refused(self, damage: Callable[[Any], Any]) -> None:
        document = json.loads(json.dumps(to_document(self.CALIBRATION)))
        damage(document)
        with pytest.raises(StoreError, match="expected a complete calibration"):
            from_document(document)

    def test_one_of_version_1_was_of_uniform_students(self) -> None:
        document = {**to_document(dataclasses.replace(self.CALIBRATION, sampler="macs_stratified")), "version": 1}
        assert document.pop("sampler") == "macs_stratified"
        assert from_document(document) == self.CALIBRATION

    def test_one_of_version_2_knew_no_tasks_elsewhere(self) -> None:
        document = {**to_document(self.CALIBRATION), "version": 2}
        assert document.pop("elsewhere") == ()
        assert from_document(document) == self.CALIBRATION

    def test_one_of_a_newer_version_is_told_apart(self) -> None:
        document = {**to_document(self.CALIBRATION), "version": CALIBRATION_VERSION + 1}
        with pytest.raises(SchemaTooNewError, match="update the package"):
            from_document(document)
