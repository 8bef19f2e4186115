"""How well methods rank the students of a target: agreement, regret, repeats over seeds, and what the labels allow.

`judge` compares one method's scores with the accuracies that distillation really gave; `summarise` gathers the repeats of
a method over seeds and targets; `ceiling` says which Spearman a method without any error could expect, as one training
run tells a student's accuracy only up to the noise of its seed.

Shape legend: n students of one target, paired by position everywhere; accuracies are percent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dass.errors import ConfigError
from dass.metrics import Values, half_width, kendall, regret_at_k, spearman, spearman_of_rows

MIN_BAND = 4  # students of a band whose order says something
FEW_BANDS, MANY_BANDS, MANY_STUDENTS = 3, 5, 50
MIN_STUDENTS = 6  # regret@5 of five students is always 0
METRICS = ("spearman", "spearman_in_bands", "kendall", "regret_1", "regret_5", "seconds_per_candidate", "adapt_s")
_DRAWS, _RESAMPLES = 50, 500


@dataclass(frozen=True)
class EvaluateConfig:
    """Which targets methods are compared on, and how."""

    targets: tuple[str, ...] = field(
        default=(),
        metadata={"help": "sources such as imagefolder:PATH whose whole images are targets; beside the kept classes"},
    )
    bands: int | None = field(default=None, metadata={"help": "bands of MACs; none: 3, and 5 from 50 students on"})
    short_epochs: int = field(default=3, metadata={"help": "epochs of a student under the method short_kd"})

    def __post_init__(self) -> None:
        if self.short_epochs < 1:
            raise ConfigError(
                f"evaluate.short_epochs must be >= 1, got {self.short_epochs}; set evaluate.short_epochs=3"
            )
        if self.bands is not None and self.bands < 1:
            raise ConfigError(f"evaluate.bands must be >= 1, got {self.bands}; set evaluate.bands=none for the default")


@dataclass(frozen=True)
class Judged:
    """One method, one seed, one target; NaN is undefined. Regrets are in accuracy points, times on one thread."""

    spearman: float
    spearman_in_bands: float
    kendall: float
    regret_1: float
    regret_5: float
    seconds_per_candidate: float
    adapt_s: float


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval; None where they are undefined, or for the ends of a single value."""

    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """A method over its seeds: each of METRICS by target, and their means over all targets."""

    name: str
    group: str
    by_target: Mapping[str, Mapping[str, Interval]]
    overall: Mapping[str, Interval]


@dataclass(frozen=True)
class Redrawn:
    """A method if other students had been drawn: its mean Spearman over targets and seeds, and what it lacks to the best's.

    The intervals hold 95 % of draws of the students anew (bootstrap); see `redraw`.
    """

    spearman: Interval
    behind: Interval


@dataclass(frozen=True)
class Ceiling:
    """What the noise of the labels allows on one target; `students` with several runs each, `runs` in all, tell the noise.

    between_runs: the expected Spearman between two independent single runs of every student. of_perfect: that between
    one run of every student and what runs of it give on average, the most that a method can expect; see `ceiling`.
    """

    students: int
    runs: int
    between_runs: Interval
    of_perfect: Interval


@dataclass(frozen=True)
class Coverage:
    """How well the predictor's intervals held on one target.

    level: the share that was promised on average over tasks. half_width_pct: of the intervals, accuracy points. share:
    of the ranked students, those whose accuracy lay in theirs; the mean over seeds. winner_*: the same of the student
    ranked first alone, whose interval is another one.
    """

    level: float
    half_width_pct: float
    share: float
    winner_half_width_pct: float
    winner_share: float


@dataclass(frozen=True)
class BenchmarkTarget:
    """A target that methods were compared on.

    records: the hash of all records that the results depend on. students: those that were ranked; shown: those that
    methods could adapt to; diverged: those that have no accuracy. failed: by method, students without a score.
    coverage: None where the predictor was not calibrated, or DaSS not compared.
    """

    name: str
    records: str
    students: int
    shown: int
    diverged: int
    failed: Mapping[str, int]
    ceiling: Ceiling | None
    coverage: Coverage | None


@dataclass(frozen=True)
class Benchmark:
    """A whole comparison; summaries: the best first. protocol: what else decided the figures, as JSON types.

    redrawn: by method, the best first; empty where it was not asked.
    """

    summaries: tuple[Summary, ...]
    targets: tuple[BenchmarkTarget, ...]
    protocol: Mapping[str, Any]
    redrawn: Mapping[str, Redrawn] = field(default_factory=dict)


def judge(
    scores: ArrayLike,
    accuracies: ArrayLike,
    macs: ArrayLike,
    *,
    num_bands: int | None = None,
    seconds_per_candidate: float = 0.0,
    adapt_s: float = 0.0,
) -> Judged:
    """What the scores (n,) of a target's students are worth, given their true accuracies (n,) and MACs (n,).

    Failed students, at -inf, rank last. Of equal scores the earlier student counts as better in a regret.

    Raises:
        ValueError: the sides are not vectors of one length, or n is less than 5.
    """
    return Judged(
        spearman=spearman(scores, accuracies),
        spearman_in_bands=spearman_in_bands(scores, accuracies, macs, num_bands),
        kendall=kendall(scores, accuracies),
        regret_1=regret_at_k(scores, accuracies, 1),
        regret_5=regret_at_k(scores, accuracies, 5),
        seconds_per_candidate=seconds_per_candidate,
        adapt_s=adapt_s,
    )


def macs_bands(macs: ArrayLike, num_bands: int | None = None) -> list[NDArray[np.intp]]:
    """Indices of the students of each band: sorted by MACs and cut into bands of equal counts, the first ones larger.

    num_bands: None gives 5 from 50 students on, 3 below. Students of equal MACs keep their order.
    """
    known = np.asarray(macs, dtype=np.float64)
    num = num_bands or (MANY_BANDS if known.size >= MANY_STUDENTS else FEW_BANDS)
    return np.array_split(np.argsort(known, kind="stable"), num)


def spearman_in_bands(scores: ArrayLike, accuracies: ArrayLike, macs: ArrayLike, num_bands: int | None = None) -> float:
    """The mean of the Spearman correlations within the bands of MACs, weighted by their students.

    A band with fewer than 4 students or with one accuracy alone has no order to find and is left out, for all methods
    alike. NaN where no band is left, or where the scores of one that is left are all equal.

    Raises:
        ValueError: the sides are not vectors of one length.
    """
    predicted, actual, cost = (np.asarray(side, dtype=np.float64) for side in (scores, accuracies, macs))
    if predicted.ndim != 1 or not predicted.shape == actual.shape == cost.shape:
        raise ValueError(
            "scores, accuracies and MACs must be vectors of one length, got shapes "
            f"{predicted.shape}, {actual.shape} and {cost.shape}; pair them first"
        )
    usable = [band for band in macs_bands(cost, num_bands) if band.size >= MIN_BAND and np.ptp(actual[band]) > 0]
    if not usable:
        return math.nan
    found = [spearman(predicted[band], actual[band]) for band in usable]
    return float(np.average(found, weights=[band.size for band in usable]))


def interval(values: Sequence[float]) -> Interval:
    """The mean of repeats and its 95 % interval by Student's t; undefined where one of them is, no ends for one alone."""
    if not values or any(math.isnan(value) for value in values):
        return Interval(None)
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean)
    reach = half_width(values)
    return Interval(mean, mean - reach, mean + reach)


def summarise(name: str, group: str, repeats: Mapping[str, Sequence[Judged]]) -> Summary:
    """A method's repeats by target, the same seeds in the same order on each.

    The interval of a mean over targets is over seeds too: it says how far another training would lie, not how far
    another target would.
    """
    by_target = {
        target: {metric: interval([getattr(each, metric) for each in judged]) for metric in METRICS}
        for target, judged in repeats.items()
    }
    seeds = list(zip(*repeats.values(), strict=True))
    overall = {
        metric: interval([fmean(getattr(each, metric) for each in of_seed) for of_seed in seeds]) for metric in METRICS
    }
    return Summary(name, group, by_target, overall)


def ranked(summaries: Sequence[Summary]) -> list[Summary]:
    """By mean Spearman over the targets, the best first, undefined ones last; equal ones by name."""

    def place(summary: Summary) -> tuple[float, str]:
        mean = summary.overall["spearman"].mean
        return (math.inf if mean is None else -mean, summary.name)

    return sorted(summaries, key=place)


def redraw(
    scores: Mapping[str, Mapping[str, Sequence[ArrayLike]]],
    accuracies: Mapping[str, Mapping[str, float]],
    seed: int = 0,
) -> dict[str, Redrawn]:
    """What is known of methods beyond these very students; seeds alone do not tell.

    scores: by method, the best first, and by target: for each seed (n,), in the order of the target's students; failed ones
    are at -inf. accuracies: by target and student. Targets with the same students draw the same ones again, as what
    is easy to rank on one of them is so on the others.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[str, ...], NDArray[np.intp]] = {}
    chosen, labels = {}, {}
    for target, of_target in accuracies.items():
        students = tuple(sorted(of_target))
        if students not in drawn:
            drawn[students] = rng.integers(len(students), size=(_RESAMPLES, len(students)))
        place = {student: index for index, student in enumerate(of_target)}
        chosen[target] = np.array([place[student] for student in students])[drawn[students]]
        labels[target] = np.array(list(of_target.values()))
    means = {
        method: np.mean(
            [
                spearman_of_rows(np.asarray(of_seed)[chosen[target]], labels[target][chosen[target]])
                for target, of_seeds in by_target.items()
                for of_seed in of_seeds
            ],
            axis=0,
        )
        for method, by_target in scores.items()
    }
    best = next(iter(means.values()), np.empty(0))
    return {method: Redrawn(_middle(found), _middle(best - found)) for method, found in means.items()}


def ceiling(runs_pct: Sequence[Sequence[float]], seed: int = 0) -> Ceiling | None:
    """The label-noise ceiling of a target, from the accuracies of every student's runs, one or several of each.

    Let a student's label be y = m + e: m what its runs give on average, e the noise of one run, independent between runs.

    between_runs = E Spearman(y, y') over two different runs of each student that has several: an average over draws, no
    model needed.
    of_perfect = E Spearman(m, y) over all students. It cannot be measured, as a mean of few runs is noisy itself, so it
    is simulated: e is normal with the variance from run to run that those with several runs tell (`label_noise_pct`), and
    m is the students' means, shrunk to the variance that this noise leaves them. It is 0 where none is left.

    The intervals hold 95 % of draws of the students anew (bootstrap). Those with several runs must be no selection.

    Returns None with fewer than 4 students that have several runs, or where their accuracies do not vary.
    """
    every = [np.asarray(runs, dtype=np.float64) for runs in runs_pct]
    several = [runs for runs in every if runs.size > 1]
    if len(several) < MIN_BAND:
        return None
    rng = np.random.default_rng(seed)
    left, right = _draw_pairs(several, rng)
    between = _mean_spearman(left, right)
    if math.isnan(between):
        return None
    drawn = rng.integers(len(several), size=(_RESAMPLES, len(several)))
    resampled = [_mean_spearman(left[:, chosen], right[:, chosen]) for chosen in drawn]
    drawn = rng.integers(len(every), size=(_RESAMPLES, len(every)))
    simulated = [_perfect([every[index] for index in chosen], rng) for chosen in drawn]
    return Ceiling(
        students=len(several),
        runs=sum(runs.size for runs in several),
        between_runs=Interval(between, *_ends(resampled)),
        of_perfect=Interval(_perfect(every, rng), *_ends(simulated)),
    )


def label_noise_pct(runs_pct: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation of a student's accuracy from run to run, points: pooled over students with several runs each.

    None with fewer than 4 such students.
    """
    several = [np.asarray(runs, dtype=np.float64) for runs in runs_pct if len(runs) > 1]
    return math.sqrt(_noise_variance(several)) if len(several) >= MIN_BAND else None


def _draw_pairs(several: Sequence[Values], rng: np.random.Generator) -> tuple[Values, Values]:
    """Two different runs of each student at random, (_DRAWS, n) each."""
    left, right = [], []
    for runs in several:
        first = rng.integers(runs.size, size=_DRAWS)
        second = (first + rng.integers(1, runs.size, size=_DRAWS)) % runs.size
        left.append(runs[first])
        right.append(runs[second])
    return np.stack(left, axis=1), np.stack(right, axis=1)


def _mean_spearman(left: Values, right: Values) -> float:
    """Over the rows (_DRAWS, n) that have one; NaN where none has."""
    found = spearman_of_rows(left, right)
    known = found[~np.isnan(found)]
    return float(known.mean()) if known.size else math.nan


def _perfect(every: Sequence[Values], rng: np.random.Generator) -> float:
    """E Spearman(m, y), see `ceiling`; NaN where no student has several runs."""
    noise = _noise_variance(every)
    if math.isnan(noise):
        return noise
    means = np.array([runs.mean() for runs in every])
    spread = float(means.var(ddof=1))
    left = spread - noise * fmean(1 / runs.size for runs in every)
    if left <= 0:
        return 0.0
    shrunk = means.mean() + math.sqrt(left / spread) * (means - means.mean())
    labels = shrunk + math.sqrt(noise) * rng.normal(size=(_DRAWS, means.size))
    return _mean_spearman(np.broadcast_to(shrunk, labels.shape), labels)


def _noise_variance(every: Sequence[Values]) -> float:
    """Of a student's accuracy from run to run, pooled; NaN where no student has several runs."""
    degrees = sum(runs.size - 1 for runs in every)
    return sum(float(((runs - runs.mean()) ** 2).sum()) for runs in every) / degrees if degrees else math.nan


def _middle(drawn: Values) -> Interval:
    """Their mean, and the interval that holds 95 % of them; undefined where most are."""
    known = drawn[~np.isnan(drawn)]
    return Interval(float(known.mean()), *_ends(known)) if 2 * known.size > drawn.size else Interval(None)


def _ends(drawn: Sequence[float] | Values) -> tuple[float, float]:
    """Of the interval that holds 95 % of them; those that are NaN are left out."""
    low, high = np.nanquantile(drawn, (0.025, 0.975)).tolist()
    return low, high
