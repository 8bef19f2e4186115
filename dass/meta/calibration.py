"""How far the predictor's word can be trusted on a new task, learned from tasks that it never saw (`held_out`).

Intervals are conformal for grouped data (Lee, Barber and Willett 2023; Dunn, Wasserman and Ramdas 2022): the new task is
one more draw beside K groups. With errors e = accuracy - prediction, each group has the weight 1 / (K + 1), shared alike
by its tasks and within a task by its students, and the new one has as much at infinity:

    half width(level) = the smallest q whose |e| <= q have a weight of at least `level`; none where level > K / (K + 1)

A student of a new exchangeable task is then in its interval with a chance of at least `level`, whatever the errors'
distribution. Differs: the predictor of each group is another one (leave-one-out), so the promise is not a theorem.

Comparisons of students of one task rest on a model, in which a new task is like one of those held out, each group with
the same chance. On a task like k, with a level of its own that no comparison depends on,

    accuracy = level + slope_k / temperature * prediction / unit + sd_k * N(0, 1)

    P(i better than j) = mean over k of Phi(slope_k * gap / (temperature * unit * sqrt(2) * sd_k))

slope_k >= 0 and sd_k are the least squares of the students of k. The unit, 1 or the spread of a task's predictions, and
the temperature are those by which the other groups alone foretell best which of two students of a group is better (log
loss over pairs, tasks weighted alike); the spread only where it is clearly better, as it must be known to be used. A mean
over tasks does not come near certainty where the students of some task were in no order, as one curve through all pairs
would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import torch

from dass.errors import ConfigError, DataError
from dass.meta.held_out import HeldOut
from dass.meta.novelty import TeacherSketch
from dass.seeding import generator
from dass.spaces.space import Sampler

Unit = Literal["points", "spread"]

TEMPERATURES = tuple(2 ** (step / 4) for step in range(-4, 17))
MIN_STUDENTS = 3  # of a task: a line through two leaves nothing
_LEAST_SD = 1e-3  # points; no label resolves less
_LEAST_SHARE = 0.1  # of the variance, which label noise cannot explain away
_SURE = 1e-4  # a pair's likelihood is never taken as lower
_CLEARLY = 0.01  # nats per pair
_PAIRS = 500  # of a task, at most, that the temperature is found on
_TINY = 1e-12  # in the place of a divisor of 0
_DECIMALS = 4  # of what is kept of students: a ten-thousandth of a point


@dataclass(frozen=True)
class TaskEvidence:
    """What a held-out task contributes.

    group, teacher: as in `HeldOut`. errors_pct: accuracy less prediction of every student, the best predicted first.
    behind_pct: how far each of them, in this order, came out behind the best of them.
    slope: accuracy points per predicted point, within the task. sd_pct: of accuracies around that line.
    spread_pct: the standard deviation of the predictions.

    Raises:
        DataError: a value is not finite or out of range.
    """

    name: str
    group: str
    teacher: TeacherSketch
    errors_pct: tuple[float, ...] = field(repr=False)
    behind_pct: tuple[float, ...] = field(repr=False)
    slope: float
    sd_pct: float
    spread_pct: float

    def __post_init__(self) -> None:
        numbers = (*self.errors_pct, *self.behind_pct, self.slope, self.sd_pct, self.spread_pct)
        is_whole = MIN_STUDENTS <= len(self.errors_pct) == len(self.behind_pct) and min(self.behind_pct) == 0
        is_legal = all(map(math.isfinite, numbers)) and self.slope >= 0 and self.sd_pct > 0 and self.spread_pct >= 0
        if not (is_whole and is_legal):
            raise DataError(
                f"a task's evidence must have at least {MIN_STUDENTS} errors and as many distances from the best, 0 the "
                "least, all finite, slope >= 0, sd_pct > 0 and spread_pct >= 0, got "
                f"{len(self.errors_pct)}, {len(self.behind_pct)}, {self.slope}, {self.sd_pct} and {self.spread_pct}; "
                "calibrate again"
            )


class TaskLikeness(NamedTuple):
    """The ways a new task may be, float64 (k,): chances, which sum to 1; slopes, accuracy points per predicted point; sds.

    sd_pct: of the expected accuracy around the line, so without the label noise, where that is known; it is taken as the
    same share of every task's variance, since single tasks tell their variance too vaguely to subtract from.
    """

    chance: torch.Tensor
    slope: torch.Tensor
    sd_pct: torch.Tensor


@dataclass(frozen=True)
class Calibration:
    """See the top of the file. Accuracies and predictions are percent; JSON-able (`dass.meta.calibration_file`).

    pair_log_loss: of the pairs of each group by the word of the others, nats; ln 2 = 0.693 is what guessing has.
    label_noise_pct: standard deviation of a student's accuracy from run to run; None where unknown. Without it a single
    run counts as the truth, so that probabilities are of what one run shows and are nearer to 1/2.
    sampler: how the tasks' students were drawn; those that tell a new task's spread are drawn alike.
    elsewhere: of tasks that are cut from other images than the meta tasks, by the predictor itself, which learned nothing
    on them; each a group of its own. A task that is unlike all meta tasks is one more of these.

    Raises:
        DataError: there are fewer than two groups, a task is there twice, or a value is not finite or out of range.
    """

    tasks: tuple[TaskEvidence, ...]
    unit: Unit
    temperature: float
    pair_log_loss: float
    label_noise_pct: float | None = None
    sampler: Sampler = "uniform"
    elsewhere: tuple[TaskEvidence, ...] = ()

    def __post_init__(self) -> None:
        if len(self.groups) < 2 or _is_twice(self.tasks) or _is_twice(self.elsewhere):
            raise DataError(
                f"a calibration needs different tasks in at least 2 groups, got {[task.name for task in self.tasks]} in "
                f"{len(self.groups)}, and {[task.name for task in self.elsewhere]} elsewhere; collect records of more tasks"
            )
        noise = 0.0 if self.label_noise_pct is None else self.label_noise_pct
        is_finite = all(map(math.isfinite, (self.temperature, self.pair_log_loss, noise)))
        if not (is_finite and self.temperature > 0 and noise >= 0) or self.unit not in get_args(Unit):
            raise DataError(
                f"a calibration must have a unit of {get_args(Unit)}, a finite temperature > 0 and label noise >= 0, got "
                f"{self.unit!r}, {self.temperature}, {self.label_noise_pct}; calibrate again"
            )
        if self.sampler not in get_args(Sampler):
            raise DataError(
                f"a calibration's sampler must be one of {', '.join(get_args(Sampler))}, got {self.sampler!r:.80}; calibrate "
                "again"
            )

    @property
    def groups(self) -> list[list[TaskEvidence]]:
        """The tasks by group, in order."""
        names = dict.fromkeys(task.group for task in self.tasks)
        return [[task for task in self.tasks if task.group == name] for name in names]

    @property
    def teachers(self) -> list[list[TeacherSketch]]:
        """The teachers seen, by group: what `novelty` compares a new one with."""
        return [[task.teacher for task in group] for group in self.groups]

    @property
    def reachable_level(self) -> float:
        """The highest level of an interval that so many groups can vouch for: K / (K + 1)."""
        return len(self.groups) / (len(self.groups) + 1)

    @property
    def within_sd_pct(self) -> float:
        """Standard deviation of the errors once each task's mean error is taken away, tasks weighted alike; has label noise."""
        variances = [float(torch.tensor(task.errors_pct, dtype=torch.float64).var()) for task in self.tasks]
        return math.sqrt(sum(share * each for share, each in zip(chances(self.tasks), variances, strict=True)))

    def half_width_pct(self, level: float, top_share: float = 1.0) -> float | None:
        """How far an interval of this level reaches to either side; None where the level is not reachable.

        top_share: the share of a task's students predicted best, of which the student is one. One that was chosen for
        its prediction has other errors than one that was not: a tenth is 0.1.

        Raises:
            ConfigError: the level is not in (0, 1), or the share not in (0, 1].
        """
        if not (0 < level < 1 and 0 < top_share <= 1):
            raise ConfigError(
                f"an interval needs a level in (0, 1) and a top_share in (0, 1], got {level} and {top_share}; use 0.8 and 1"
            )
        sizes, weights = [], []
        for task, chance in zip(self.tasks, chances(self.tasks), strict=True):
            errors = task.errors_pct[: math.ceil(top_share * len(task.errors_pct))]
            sizes += [abs(error) for error in errors]
            weights += [chance * self.reachable_level / len(errors)] * len(errors)
        order = torch.tensor(sizes, dtype=torch.float64).sort()
        reached = torch.tensor(weights, dtype=torch.float64)[order.indices].cumsum(0) >= level - 1e-9
        return float(order.values[reached.byte().argmax()]) if reached.any() else None

    def interval(self, predicted_pct: float, level: float, top_share: float = 1.0) -> tuple[float, float] | None:
        """Where the accuracy of a student of a new task lies with a chance of `level`; None where that is not reachable.

        It is the accuracy of a single run, label noise and all. Cut at 0 and 100. The rest as in `half_width_pct`.
        """
        reach = self.half_width_pct(level, top_share)
        if reach is None:
            return None
        low, high = (min(100.0, max(0.0, predicted_pct + side)) for side in (-reach, reach))
        return low, high

    def coverage(
        self, predicted_pct: torch.Tensor, accuracies_pct: torch.Tensor, level: float, top_share: float = 1.0
    ) -> tuple[float, float]:
        """The half width of intervals, and the share of a new task's students (..., n) whose accuracy is in its interval.

        One task is one draw: shares of single tasks scatter around the level, their mean over many does not.

        Raises:
            ConfigError: as in `half_width_pct`, or the level is not reachable.
        """
        reach = self.half_width_pct(level, top_share)
        if reach is None:
            raise ConfigError(
                f"{len(self.groups)} groups of tasks vouch for intervals of a level up to {self.reachable_level:.3g}, got "
                f"{level}; calibrate on more groups"
            )
        return reach, float(((accuracies_pct - predicted_pct).abs() <= reach).double().mean())

    def away(self, level: float, but: str = "") -> "Calibration | None":
        """The same by the tasks elsewhere, without the one named `but`; None where they do not vouch for this level."""
        left = tuple(task for task in self.elsewhere if task.name != but)
        found = replace(self, tasks=left, elsewhere=()) if len(left) > 1 else None
        return found if found is not None and found.reachable_level >= level else None

    def judging(self, level: float, *, is_unlike_all: bool, but: str = "") -> "Calibration":
        """What makes an interval of this level: for a task unlike all meta tasks `away`, if it vouches for it, else this."""
        return (self.away(level, but) if is_unlike_all else None) or self

    def likeness(self, spread_pct: float | None = None) -> TaskLikeness:
        """The ways a new task may be, one for each held out.

        spread_pct: the standard deviation of the new task's predictions, over students drawn as those of the meta tasks
        were, so without a budget; needed only where the unit is `spread`.

        Raises:
            ConfigError: it is needed and missing, or is no finite number > 0.
        """
        slopes = [task.slope / self.temperature for task in self.tasks]
        if self.unit == "spread":
            if spread_pct is None or not 0 < spread_pct < math.inf:
                raise ConfigError(
                    "gaps of predictions are measured by the spread of the task's predictions, a finite number > 0, got "
                    f"{spread_pct}; give the standard deviation of the predictions of students drawn without a budget"
                )
            slopes = [slope * task.spread_pct / spread_pct for slope, task in zip(slopes, self.tasks, strict=True)]
        chance, slope, sd = (
            torch.tensor(each, dtype=torch.float64)
            for each in (chances(self.tasks), slopes, [task.sd_pct for task in self.tasks])
        )
        noise_share = (self.label_noise_pct or 0.0) ** 2 / float((chance * sd.square()).sum())
        return TaskLikeness(chance, slope, sd * math.sqrt(max(1 - noise_share, _LEAST_SHARE)))

    def probability_better(self, gap_pct: torch.Tensor, spread_pct: float | None = None) -> torch.Tensor:
        """The chance, float64 of the gaps' shape, that a student predicted `gap_pct` points better really is better.

        Rises with the gap, 1/2 for a gap of 0. spread_pct and errors: as in `likeness`.
        """
        chance, slope, sd = (each.to(gap_pct.device) for each in self.likeness(spread_pct))
        likely: torch.Tensor = torch.special.ndtr(gap_pct.double()[..., None] * slope / (math.sqrt(2) * sd))
        return (likely * chance).sum(-1)


def calibrate(
    held_out: Sequence[HeldOut],
    *,
    elsewhere: Sequence[HeldOut] = (),
    label_noise_pct: float | None = None,
    sampler: Sampler = "uniform",
) -> Calibration:
    """The calibration by what was found on held-out tasks.

    elsewhere: what the predictor itself said of tasks of other images, see `Calibration`. label_noise_pct: standard
    deviation of a student's accuracy from run to run, points, where it was measured. sampler: how the tasks' students were
    drawn.

    Raises:
        DataError: there are fewer than two groups, a task has fewer than MIN_STUDENTS students, or the noise is negative.
    """
    tasks, others = tuple(map(_evidence, held_out)), tuple(map(_evidence, elsewhere))
    plain = Calibration(tasks, "points", 1.0, 0.0, label_noise_pct, sampler, others)
    points, spread = _losses(plain.tasks, [_pairs(found) for found in held_out])
    unit: Unit = "spread" if spread.min() < points.min() - _CLEARLY else "points"
    losses = spread if unit == "spread" else points
    return replace(plain, unit=unit, temperature=TEMPERATURES[int(losses.argmin())], pair_log_loss=float(losses.min()))


def _is_twice(tasks: Sequence[TaskEvidence]) -> bool:
    return len({task.name for task in tasks}) < len(tasks)


def _evidence(found: HeldOut) -> TaskEvidence:
    predicted, actual = (
        torch.tensor(side, dtype=torch.float64) for side in (found.predicted_pct, found.accuracies_pct)
    )
    if len(predicted) < MIN_STUDENTS:
        raise DataError(
            f"a held-out task needs at least {MIN_STUDENTS} students, got {len(predicted)} for {found.name!r}; collect "
            "more records of it"
        )
    x, y = predicted - predicted.mean(), actual - actual.mean()
    slope = max(0.0, float((x * y).sum() / x.square().sum().clamp_min(_TINY)))
    left = float((y - slope * x).square().sum()) / (len(x) - 1 - (slope > 0))
    order = predicted.argsort(descending=True, stable=True)
    return TaskEvidence(
        name=found.name,
        group=found.group,
        teacher=found.teacher,
        errors_pct=_rounded((actual - predicted)[order]),
        behind_pct=_rounded((actual.max() - actual)[order]),
        slope=slope,
        sd_pct=max(_LEAST_SD, math.sqrt(left)),
        spread_pct=float(x.std()),
    )


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(value, _DECIMALS) for value in values.tolist())


def chances(tasks: Sequence[TaskEvidence]) -> list[float]:
    """Of each task: every group the same, shared alike by its tasks."""
    groups = [task.group for task in tasks]
    return [1 / (len(set(groups)) * groups.count(group)) for group in groups]


class _Pairs(NamedTuple):
    """Pairs of students of a task: predicted gaps >= 0 in points, and 1, 1/2 or 0 for the better predicted's success."""

    gap: torch.Tensor
    won: torch.Tensor


def _pairs(found: HeldOut) -> _Pairs:
    """All pairs, or `_PAIRS` of them at random."""
    predicted, actual = (
        torch.tensor(side, dtype=torch.float64) for side in (found.predicted_pct, found.accuracies_pct)
    )
    first, second = torch.triu_indices(len(predicted), len(predicted), 1)
    chosen = torch.randperm(len(first), generator=generator("pairs", found.name))[:_PAIRS]
    gap, lead = ((side[first] - side[second])[chosen] for side in (predicted, actual))
    return _Pairs(gap.abs(), (1 + (gap.sign() * lead).sign()) / 2)


def _losses(tasks: Sequence[TaskEvidence], pairs: Sequence[_Pairs]) -> torch.Tensor:
    """(units, TEMPERATURES): mean log loss of the pairs of each task by the word of the other groups, tasks alike."""
    temperatures = torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None, None]
    total = torch.zeros(len(get_args(Unit)), len(TEMPERATURES), dtype=torch.float64)
    for task, (gap, won), share in zip(tasks, pairs, chances(tasks), strict=True):
        others = [each for each in tasks if each.group != task.group]
        weights = torch.tensor(chances(others), dtype=torch.float64)
        by_points = [each.slope / (math.sqrt(2) * each.sd_pct) for each in others]
        spreads = [each.spread_pct / max(task.spread_pct, _TINY) for each in others]
        by_spread = [a * b for a, b in zip(by_points, spreads, strict=True)]
        steepness = torch.tensor([by_points, by_spread], dtype=torch.float64)
        z = gap[:, None] * steepness[:, None, None]  # (units, 1, pairs, others)
        likely = (torch.special.ndtr(z / temperatures) @ weights).clamp(_SURE, 1 - _SURE)
        total -= share * (won * likely.log() + (1 - won) * (1 - likely).log()).mean(-1)
    return total
