"""What more records would buy: the predictor's quality against the number of records that it learned from.

The predictor is meta-trained, briefly, on nested random subsets of the records of the meta-training tasks, several times
over with other subsets, and each time ranks all students of the meta-validation tasks. Through the Spearman correlations
goes a power law, the usual shape of learning curves:

    spearman(n) = ceiling - scale * n ** -exponent        scale >= 0, ceiling <= 1, exponent of a grid

What more records buy is a difference on it; its interval comes from drawing the repetitions anew (bootstrap).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from dass.meta.episodes import MetaTask
from dass.meta.train import MetaConfig, MetaTraining
from dass.predictor import PredictorSpec
from dass.seeding import generator

SHARES = (0.125, 0.25, 0.5, 1.0)
REPETITIONS = 3
EPISODES = 100  # at most: enough to tell few records from many, not for a predictor to use
_EXPONENTS = np.linspace(0.1, 2.0, 39)
_DRAWS = 500

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CurvePoint:
    """A short meta-training: its repetition, how many records it learned from, and the best Spearman on meta-validation."""

    repetition: int
    records: int
    spearman: float


@dataclass(frozen=True)
class Gain:
    """What `more` records would add to the Spearman: the power law's word, and nine in ten of the bootstrap's."""

    more: int
    spearman: float
    low: float
    high: float


def measure(
    spec: PredictorSpec, config: MetaConfig, train: Sequence[MetaTask], valid: Sequence[MetaTask]
) -> Iterator[CurvePoint]:
    """The points one by one, `REPETITIONS` times `len(SHARES)` of them; one whose Spearman is undefined is left out."""
    for repetition in range(REPETITIONS):
        brief = replace(config, episodes=min(config.episodes, EPISODES), seed=repetition)
        for share in SHARES:
            some = [subset(task, share, repetition, config.support_students + 1) for task in train]
            found = [point.valid_spearman for point in MetaTraining(spec, brief, some, valid)]
            known = [spearman for spearman in found if spearman is not None]
            if known:
                yield CurvePoint(repetition, sum(task.num_students for task in some), max(known))


def gain(points: Sequence[CurvePoint], more: int, seed: int = 0) -> Gain | None:
    """What `more` records buy after the most that were learned from; None with fewer than three numbers of records."""
    if len({point.records for point in points}) < 3:
        return None
    repetitions = sorted({point.repetition for point in points})
    by_repetition = [[point for point in points if point.repetition == each] for each in repetitions]
    drawn = np.random.default_rng(seed).integers(len(repetitions), size=(_DRAWS, len(repetitions)))
    found = [_gain([point for each in row for point in by_repetition[each]], more) for row in drawn]
    low, high = np.quantile(found, (0.05, 0.95))
    return Gain(more, _gain(points, more), float(low), float(high))


def subset(task: MetaTask, share: float, seed: int, least: int = 2) -> MetaTask:
    """The first students of a random order, at least two and `least`; a smaller share's are among a larger one's."""
    order = torch.randperm(task.num_students, generator=generator("learning curve", task.name, seed))
    chosen = order[: max(2, least, round(share * task.num_students))].to(task.maps.device)
    return replace(task, **task.students(chosen)._asdict())


def _gain(points: Sequence[CurvePoint], more: int) -> float:
    records = np.array([point.records for point in points], dtype=np.float64)
    scale, exponent = _fit(records, np.array([point.spearman for point in points]))
    most = float(records.max())
    return float(scale * (most**-exponent - (most + more) ** -exponent))


def _fit(records: Values, spearmans: Values) -> tuple[float, float]:
    """(scale, exponent) of the least squares; a curve that does not rise has the scale 0."""
    best = (float(np.square(spearmans - spearmans.mean()).sum()), 0.0, 1.0)
    for exponent in _EXPONENTS:
        terms = records**-exponent
        spread = float(np.square(terms - terms.mean()).sum())
        if spread <= 0:
            continue
        scale = -float(((terms - terms.mean()) * spearmans).sum()) / spread
        ceiling = float(spearmans.mean() + scale * terms.mean())
        if ceiling > 1:  # then the best through a ceiling of 1
            scale, ceiling = float((terms * (1 - spearmans)).sum() / np.square(terms).sum()), 1.0
        error = float(np.square(ceiling - scale * terms - spearmans).sum())
        if scale >= 0 and error < best[0]:
            best = (error, scale, float(exponent))
    return best[1], best[2]
