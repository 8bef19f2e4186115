"""Novelty: statistics against numpy, how often it warns of tasks of the same kind, and of what it must warn."""

import math

import numpy as np
import pytest
import torch

from dass.errors import DataError
from dass.meta.novelty import STATISTICS, TeacherSketch, novelty, sketch


def drawn(rng: np.random.Generator, accuracy_pct: float = 70.0) -> TeacherSketch:
    return TeacherSketch(accuracy_pct, tuple(rng.normal(size=len(STATISTICS)).tolist()))


def test_statistics_are_those_of_numpy() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=(12, 4, 4)), 0)
    means = values.mean(axis=(1, 2))
    expected = (
        np.log(np.abs(values).mean()),
        np.log(values.std()),
        (values > 0).mean(),
        np.log(means.std()),
        np.log(values.std(axis=(1, 2)).mean()),
        np.log((means**2).sum() ** 2 / (means**4).sum()),
    )
    found = sketch(torch.tensor(values), 50.0)
    assert found.map_statistics == pytest.approx(expected)
    assert found.accuracy_pct == 50.0


def test_a_map_without_any_activity_has_a_sketch() -> None:
    assert all(map(math.isfinite, sketch(torch.zeros(4, 2, 2), 10.0).map_statistics))


@pytest.mark.parametrize(
    "teacher_map",
    [torch.zeros(2, 2), torch.zeros(0, 2, 2), torch.full((1, 2, 2), math.nan)],
    ids=["shape", "empty", "nan"],
)
def test_maps_that_are_none_are_refused(teacher_map: torch.Tensor) -> None:
    with pytest.raises(DataError, match="map must be finite"):
        sketch(teacher_map, 50.0)


@pytest.mark.parametrize("accuracy", [-1.0, 100.5, math.nan])
def test_accuracies_are_percent(accuracy: float) -> None:
    with pytest.raises(DataError, match="percent"):
        sketch(torch.ones(1, 2, 2), accuracy)


@pytest.mark.parametrize("num_groups", [4, 9])
def test_of_tasks_of_the_same_kind_it_warns_about_as_often_as_one_of_all_is_the_farthest(num_groups: int) -> None:
    rng, num = np.random.default_rng(1), 1000
    warned = 0
    for _ in range(num):
        seen = [[drawn(rng)] for _ in range(num_groups)]
        warned += novelty(seen, drawn(rng), 10).score > 1
    expected = 1 / (num_groups + 1)
    assert warned / num <= expected + 3.9 * math.sqrt(expected / num)
    assert warned / num >= expected / 4  # not for want of warning at all


def test_the_score_is_a_distance_over_the_largest_among_those_seen() -> None:
    rng = np.random.default_rng(2)
    seen, new = [[drawn(rng)] for _ in range(5)], drawn(rng)
    table = np.array([group[0].map_statistics for group in seen])

    def nearest(point: np.ndarray, others: np.ndarray) -> float:
        return min(float(np.linalg.norm((point - other) / others.std(axis=0, ddof=1))) for other in others)

    among = [nearest(table[index], np.delete(table, index, axis=0)) for index in range(5)]
    expected = nearest(np.array(new.map_statistics), table) / max(among)
    assert novelty(seen, new, 10).score == pytest.approx(expected)


def test_a_map_far_out_is_warned_of_in_one_sentence() -> None:
    rng = np.random.default_rng(3)
    seen = [[drawn(rng)] for _ in range(8)]
    far = TeacherSketch(70.0, (30.0, *drawn(rng).map_statistics[1:]))
    found = novelty(seen, far, 10)
    assert found.is_unlike_all
    assert len(found.reasons) == 1
    assert "times as far" in found.reasons[0]


def test_a_task_that_was_seen_is_not_new() -> None:
    rng = np.random.default_rng(4)
    seen = [[drawn(rng)] for _ in range(6)]
    found = novelty(seen, seen[2][0], 10)
    assert found.score == pytest.approx(0, abs=1e-6)
    assert found.reasons == ()


def test_the_other_half_of_a_group_does_not_make_a_task_of_it_near() -> None:
    """Tasks that share classes have maps that are nearly equal: what they are apart is not how far tasks lie."""
    rng = np.random.default_rng(5)
    alone = [[drawn(rng)] for _ in range(6)]
    twins = [[each, TeacherSketch(70.0, tuple(s + 1e-6 for s in each.map_statistics))] for (each,) in alone]
    new = drawn(rng)
    assert novelty(twins, new, 10).score == pytest.approx(novelty(alone, new, 10).score, rel=0.15)
    ungrouped = [[each] for group in twins for each in group]
    assert novelty(ungrouped, new, 10).score > 1000


@pytest.mark.parametrize(
    ("accuracy", "num_classes", "words"),
    [
        (51.0, 2, ["hardly above chance, 50.0 %", "below those of all meta tasks, 60.0 to 80.0 %"]),
        (7.0, 40, ["hardly above chance, 2.5 %", "below those"]),
        (55.0, 10, ["below those of all meta tasks"]),
        (90.0, 10, ["above those of all meta tasks, 60.0 to 80.0 %"]),
        (60.0, 10, []),
        (80.0, 10, []),
    ],
)
def test_teachers_at_chance_or_out_of_range_are_warned_of(accuracy: float, num_classes: int, words: list[str]) -> None:
    rng = np.random.default_rng(6)
    seen = [[drawn(rng, 60.0 + 5 * index)] for index in range(5)]
    reasons = novelty(seen, TeacherSketch(accuracy, seen[0][0].map_statistics), num_classes).reasons
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


@pytest.mark.parametrize(("num_groups", "num_classes"), [(2, 10), (5, 1)])
def test_too_few_groups_or_classes_are_refused(num_groups: int, num_classes: int) -> None:
    rng = np.random.default_rng(7)
    with pytest.raises(DataError, match="at least 3 groups"):
        novelty([[drawn(rng)] for _ in range(num_groups)], drawn(rng), num_classes)
