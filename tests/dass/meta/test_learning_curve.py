"""Learning curves of the predictor: the power law against known ones, subsets and short trainings on toy tasks."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from dass.meta.episodes import MetaTask
from dass.meta.learning_curve import REPETITIONS, CurvePoint, gain, measure, subset
from dass.meta.train import MetaConfig
from tests.dass.meta.toy import spec, task

SIZES = (50, 100, 200, 400)


def points(law: Callable[[float], float], noise: float = 0.0) -> list[CurvePoint]:
    chance = np.random.default_rng(0)
    return [
        CurvePoint(repetition, size, law(size) + noise * chance.normal())
        for repetition in range(REPETITIONS)
        for size in SIZES
    ]


def power_law(ceiling: float, scale: float, exponent: float) -> Callable[[float], float]:
    return lambda size: ceiling - scale * float(size) ** -exponent


@pytest.mark.parametrize(("ceiling", "scale", "exponent"), [(0.9, 2.0, 0.5), (0.5, 5.0, 1.0), (1.0, 1.0, 0.25)])
def test_points_of_a_power_law_give_its_gain(ceiling: float, scale: float, exponent: float) -> None:
    law = power_law(ceiling, scale, exponent)
    found = gain(points(law), 100)
    assert found is not None
    assert found.spearman == pytest.approx(law(500) - law(400), rel=1e-6)
    assert found.low == pytest.approx(found.high)


def test_noise_widens_the_interval_and_it_still_holds_the_truth() -> None:
    law = power_law(0.9, 2.0, 0.5)
    found = gain(points(law, noise=0.02), 400)
    assert found is not None
    assert found.low < law(800) - law(400) < found.high


def test_a_curve_that_does_not_rise_promises_nothing() -> None:
    found = gain(points(lambda size: 0.5 - size / 1000), 100)
    assert found is not None
    assert found.spearman == 0.0


def test_two_sizes_are_too_few_to_tell() -> None:
    assert gain([CurvePoint(0, 10, 0.1), CurvePoint(0, 20, 0.2)], 100) is None


def students(of: MetaTask) -> dict[float, tuple[float, ...]]:
    """By accuracy, which is different for each, the student's map."""
    maps = of.maps.flatten(1).tolist()
    return {accuracy: tuple(row) for accuracy, row in zip(of.targets_pct.tolist(), maps, strict=True)}


def test_subsets_are_nested_and_differ_from_repetition_to_repetition() -> None:
    whole = task("a", 60.0, 0, num=24)
    small, large, other = subset(whole, 0.25, 0), subset(whole, 0.5, 0), subset(whole, 0.5, 1)
    assert [each.num_students for each in (small, large, other)] == [6, 12, 12]
    assert students(small).items() < students(large).items() < students(whole).items()
    assert students(large) != students(other)


def test_what_students_explain_stays_with_them() -> None:
    of = task("a", 60, 0, num=10)
    part = subset(replace(of, explained=of.targets_pct / 100), 0.5, 0)
    assert part.explained is not None
    assert torch.equal(part.explained, part.targets_pct / 100)


def test_a_curve_is_measured_by_real_meta_trainings() -> None:
    config = MetaConfig(episodes=2, eval_every=1, queries=4, hidden_dim=8)
    train, valid = [task("a", 60.0, 1, num=16), task("b", 70.0, 2, num=24)], [task("c", 65.0, 3, num=10)]
    found = list(measure(spec(config), config, train, valid))
    assert [point.records for point in found] == [5, 10, 20, 40] * REPETITIONS
    assert all(-1 <= point.spearman <= 1 for point in found)
    assert found == list(measure(spec(config), config, train, valid))
