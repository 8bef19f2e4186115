"""Whether a task looks unlike all that the predictor has learned from, by what it looks at: the teacher and its map.

A teacher's map is summed up in a few numbers, the same for any number of channels. A task is as far as the nearest task
seen, each number in standard deviations of those seen. How far is far, the tasks seen tell themselves: each of them is
held against the others in the same way. A task of the same kind as K independent ones lies farther than all of them do
with a chance of about 1 in K + 1.

Shape legend: C channels, h x w places of a map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dass.errors import DataError

STATISTICS = (  # of a map, in the order of `TeacherSketch.map_statistics`
    "log mean size",
    "log standard deviation",
    "share of active values",
    "log spread between channels",
    "log spread within channels",
    "log number of channels that carry it",
)
MIN_GROUPS = 3  # a task held against two others
_LEAST_SD = 0.01  # a hundredth of a logarithm is 1 %: less between tasks is no measure of distance
_LEAST = 1e-12  # logarithms of smaller values are those of this one
_ABOVE_CHANCE = 0.05  # of the way from chance to 100 %: a teacher below has hardly learned anything


@dataclass(frozen=True)
class TeacherSketch:
    """What is kept of a teacher to compare others with: its accuracy in percent, and STATISTICS of its map.

    Raises:
        DataError: a value is not finite, the accuracy is not in 0..100, or the statistics are not as many.
    """

    accuracy_pct: float
    map_statistics: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.map_statistics) != len(STATISTICS) or not all(map(math.isfinite, self.map_statistics)):
            raise DataError(
                f"a teacher's sketch must have {len(STATISTICS)} finite statistics, got {self.map_statistics!r:.80}; "
                "make it with `sketch`"
            )
        if not 0 <= self.accuracy_pct <= 100:
            raise DataError(
                f"a teacher's accuracy must be in 0..100 percent, got {self.accuracy_pct}; measure it again"
            )


@dataclass(frozen=True)
class Novelty:
    """How unlike a task is to those seen.

    score: its distance from the nearest task seen, over the largest such distance of the tasks seen; above 1 it lies
    farther out than any of them. reasons: one sentence for each thing that is unlike; empty where nothing is.
    """

    score: float
    reasons: tuple[str, ...]

    @property
    def is_unlike_all(self) -> bool:
        """Whether to warn."""
        return bool(self.reasons)


def sketch(teacher_map: torch.Tensor, teacher_accuracy_pct: float) -> TeacherSketch:
    """The sketch of a teacher, from its map (C, h, w) and its accuracy on the task's valid part, percent.

    Raises:
        DataError: the map is not of that shape or not finite, or the accuracy is not in 0..100.
    """
    if teacher_map.ndim != 3 or not teacher_map.numel() or not teacher_map.isfinite().all():
        raise DataError(
            f"a teacher's map must be finite and (C, h, w), got {tuple(teacher_map.shape)}; compute it again"
        )
    values = teacher_map.detach().double().flatten(1)
    means = values.mean(1)
    power = means.square()
    numbers = (
        _log(values.abs().mean()),
        _log(values.std(correction=0)),
        float((values > 0).double().mean()),
        _log(means.std(correction=0)),
        _log(values.std(1, correction=0).mean()),
        _log(power.sum().square() / power.square().sum().clamp_min(_LEAST)),  # participation ratio, 1..C
    )
    return TeacherSketch(float(teacher_accuracy_pct), numbers)


def novelty(seen: Sequence[Sequence[TeacherSketch]], teacher: TeacherSketch, num_classes: int) -> Novelty:
    """How unlike the task of `teacher`, of so many classes, is to those seen.

    seen: the sketches of the meta tasks; tasks of one group, such as those that share classes, are near each other by
    their making, so each is held against those of the other groups alone.

    Raises:
        DataError: there are fewer than MIN_GROUPS groups, or fewer than 2 classes.
    """
    if len(seen) < MIN_GROUPS or not all(seen) or num_classes < 2:
        raise DataError(
            f"novelty needs at least {MIN_GROUPS} groups of tasks seen, none empty, and 2 classes, got {len(seen)} groups "
            f"and {num_classes} classes; collect records of more tasks"
        )
    tables = [torch.tensor([each.map_statistics for each in group], dtype=torch.float64) for group in seen]
    among = [_distances(table, tables[:index] + tables[index + 1 :]).max() for index, table in enumerate(tables)]
    usual = float(torch.stack(among).max())
    distance = float(_distances(torch.tensor([teacher.map_statistics], dtype=torch.float64), tables))
    score = distance / max(usual, _LEAST)
    reasons = [
        *_map_reasons(score),
        *_accuracy_reasons([each.accuracy_pct for group in seen for each in group], teacher.accuracy_pct, num_classes),
    ]
    return Novelty(score, tuple(reasons))


def _map_reasons(score: float) -> list[str]:
    if score <= 1:
        return []
    return [
        f"the teacher's map lies {score:.2g} times as far from that of the nearest meta task as any meta task's lies from "
        "its own nearest"
    ]


def _accuracy_reasons(seen_pct: Sequence[float], accuracy_pct: float, num_classes: int) -> list[str]:
    chance, low, high = 100 / num_classes, min(seen_pct), max(seen_pct)
    reasons = []
    if accuracy_pct < chance + _ABOVE_CHANCE * (100 - chance):
        reasons.append(f"the teacher's accuracy of {accuracy_pct:.1f} % is hardly above chance, {chance:.1f} %")
    if not low <= accuracy_pct <= high:
        side = "above" if accuracy_pct > high else "below"
        reasons.append(
            f"the teacher's accuracy of {accuracy_pct:.1f} % is {side} those of all meta tasks, {low:.1f} to {high:.1f} %"
        )
    return reasons


def _distances(points: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    """(n,): from points (n, d) to the nearest of the others, in standard deviations of the others."""
    known = torch.cat(list(others))
    scale = known.std(0).clamp_min(_LEAST_SD)
    return torch.cdist(points / scale, known / scale).min(1).values


def _log(value: torch.Tensor) -> float:
    return math.log(max(float(value), _LEAST))
