"""What a ranking is worth before anything is distilled: whether its winner stands out, and what pilot runs would add.

The first rests on the model of `dass.meta.calibration`: on a new task, which is like one of those held out, the expected
accuracies of the students lie around a line in their predictions, with independent normal residuals. The second rests on
the held-out tasks as they came out: the model would have the best of thousands stand out by as much as thousands of
independent residuals do, while students that are alike err alike.

Accuracies, predictions and regrets are in percent or accuracy points. spread_pct: see `Calibration.likeness`.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import torch

from dass.errors import ConfigError, DataError
from dass.meta.calibration import Calibration, chances

LEVEL = 0.95
_REACH, _STEPS = 8.0, 321  # the integral over the best one's accuracy, in standard deviations: beyond is nothing


@dataclass(frozen=True)
class HeadConfidence:
    """What is known of the first students of a ranking.

    beats_runner_up: the chance that the winner really is better than the second. is_best: for each of the first students
    the chance that it is the best of them, the winner's first; they sum to 1. level: what the verdict asks for.
    """

    beats_runner_up: float
    is_best: tuple[float, ...]
    level: float

    @property
    def is_distinguishable(self) -> bool:
        """Whether the winner can be told from the runner-up at this level."""
        return self.beats_runner_up >= self.level

    @property
    def verdict(self) -> str:
        """One sentence."""
        can = "can" if self.is_distinguishable else "cannot"
        return (
            f"The winner {can} be told from the runner-up at {100 * self.level:.0f} %: it is better with a chance of "
            f"{100 * self.beats_runner_up:.0f} %, and the best of the first {len(self.is_best)} with one of "
            f"{100 * self.is_best[0]:.0f} %."
        )


@dataclass(frozen=True)
class PilotPlan:
    """How many of the first candidates to distil before the best of them is taken.

    runs: 0 where the predicted winner will do unmeasured. is_enough: whether the regret is then within `within_pct`; if
    not, `runs` is the most that were allowed. regrets_pct: by the number of pilot runs, from 0 on, how far the student
    taken was behind the best of all students of a held-out task, on average. students: how many such a task had at least.
    """

    runs: int
    is_enough: bool
    within_pct: float
    regrets_pct: tuple[float, ...]
    students: int

    @property
    def before_pct(self) -> float:
        """The regret of the predicted winner."""
        return self.regrets_pct[0]

    @property
    def after_pct(self) -> float:
        """The regret of the best of the pilot runs."""
        return self.regrets_pct[self.runs]


def head_confidence(
    calibration: Calibration,
    scores_pct: torch.Tensor,
    *,
    spread_pct: float | None = None,
    num: int = 5,
    level: float = LEVEL,
) -> HeadConfidence:
    """What is known of the `num` best of these predictions (n,), in any order; those that are not finite are left out.

    The chance to be the best is the integral over the accuracy x of the student's density times the chance that all
    others are below x, by the trapezoidal rule.

    Raises:
        ConfigError: `num` is below 2, the level is not in (0, 1), or the spread is needed and missing.
        DataError: fewer than two predictions are finite.
    """
    if num < 2 or not 0 < level < 1:
        raise ConfigError(f"num must be >= 2 and level in (0, 1), got {num} and {level}; use 5 and {LEVEL}")
    best = scores_pct[scores_pct.isfinite()].double().sort(descending=True).values[:num]
    if len(best) < 2:
        raise DataError(f"a ranking needs at least 2 finite predictions, got {len(best)}; score more candidates")
    chance, slope, sd = (each.to(best.device) for each in calibration.likeness(spread_pct))
    centres = (slope / sd)[:, None] * (best - best[0])  # (k, m), in standard deviations, the winner's at 0
    grid = torch.linspace(-_REACH, _REACH, _STEPS, dtype=torch.float64, device=best.device)
    z = grid - centres[..., None]  # (k, m, grid)
    below = torch.special.log_ndtr(z)
    others = below.sum(1, keepdim=True) - below
    density = (others - z.square() / 2).exp() / math.sqrt(2 * math.pi)
    is_best = chance @ torch.trapezoid(density, grid)
    return HeadConfidence(
        beats_runner_up=float(calibration.probability_better(best[0] - best[1], spread_pct)),
        is_best=tuple(is_best.tolist()),
        level=level,
    )


def pilot_runs(calibration: Calibration, *, within_pct: float = 0.5, least: int = 0, max_runs: int = 20) -> PilotPlan:
    """The fewest pilot runs, from `least` on, with a mean regret on held-out tasks within `within_pct`; at most `max_runs`.

    Groups of tasks weigh alike. Nothing is modelled: the students of a held-out task were all distilled, so the best of
    the first few is known, and how far it is behind the best of all.

    Raises:
        ConfigError: a setting is out of range.
    """
    if not (within_pct > 0 and 0 <= least <= max_runs and max_runs >= 1):
        raise ConfigError(
            "within_pct must be > 0, max_runs >= 1 and least in [0, max_runs], got "
            f"{within_pct}, {max_runs} and {least}; use 0.5, 20 and 0"
        )
    students = min(len(task.behind_pct) for task in calibration.tasks)
    by_runs = [0.0] * min(max_runs, students)
    for task, chance in zip(calibration.tasks, chances(calibration.tasks), strict=True):
        for index, regret in enumerate(accumulate(task.behind_pct[: len(by_runs)], min)):
            by_runs[index] += chance * regret
    regrets = (by_runs[0], *by_runs)  # to measure one alone changes nothing
    enough = [num for num, regret in enumerate(regrets) if num >= least and regret <= within_pct]
    return PilotPlan(
        runs=enough[0] if enough else len(by_runs),
        is_enough=bool(enough),
        within_pct=within_pct,
        regrets_pct=regrets,
        students=students,
    )
