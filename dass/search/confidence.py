"""What a ranking is worth before anything is distilled: whether its winner stands out, and what pilot runs would add.

Both rest on the model of `dass.meta.calibration`: on a new task, which is like one of those held out, the expected
accuracies of the students lie around a line in their predictions, with independent normal residuals. Students that are
alike err alike in truth, so the best of thousands stands out less than independence has it: where the model errs, pilot
runs are rather too many than too few.

Accuracies, predictions and regrets are in percent or accuracy points. spread_pct: see `Calibration.likeness`.
"""

import math
from dataclasses import dataclass

import torch

from dass.errors import ConfigError, DataError
from dass.meta.calibration import Calibration
from dass.seeding import generator

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

    runs: 0 where the predicted winner will do unmeasured. is_enough: whether the regret is then expected to be within
    `within_pct`; if not, `runs` is the most that were allowed. regrets_pct: by the number of pilot runs, from 0 on, how
    far the student taken is expected to be behind the best of all candidates.
    """

    runs: int
    is_enough: bool
    within_pct: float
    regrets_pct: tuple[float, ...]

    @property
    def before_pct(self) -> float:
        """The expected regret of the predicted winner."""
        return self.regrets_pct[0]

    @property
    def after_pct(self) -> float:
        """The expected regret of the best of the pilot runs."""
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
    best = _ranked(scores_pct, 2)[:num]
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


def pilot_runs(
    calibration: Calibration,
    scores_pct: torch.Tensor,
    *,
    spread_pct: float | None = None,
    within_pct: float = 0.5,
    max_runs: int = 20,
    draws: int = 2000,
    seed: int = 0,
) -> PilotPlan:
    """The fewest pilot runs after which the expected regret is within `within_pct`, at most `max_runs`.

    scores_pct: the predictions (n,) of all candidates, in any order; those that are not finite are left out. The
    expectation is over `draws` simulated tasks: true accuracies are drawn around the predictions, the first candidates
    are measured, with label noise where it is known, and the one measured best is taken.

    Raises:
        ConfigError: a setting is out of range, or the spread is needed and missing.
        DataError: no prediction is finite.
    """
    if not (within_pct > 0 and max_runs >= 1 and draws >= 1):
        raise ConfigError(
            f"within_pct must be > 0, max_runs and draws >= 1, got {within_pct}, {max_runs} and {draws}; use 0.5, 20 and 2000"
        )
    scores = _ranked(scores_pct, 1)
    chance, slope, sd = calibration.likeness(spread_pct)
    rng = generator("pilot runs", seed)
    by_runs = torch.zeros(min(max_runs, len(scores)), dtype=torch.float64)
    for k in range(len(chance)):
        lines = (slope[k].to(scores.device) * (scores - scores[0])).float()
        regret = _regrets(
            lines, float(sd[k]), calibration.label_noise_pct or 0.0, len(by_runs), -(-draws // len(chance)), rng
        )
        by_runs += chance[k] * regret.cpu()
    regrets = (float(by_runs[0]), *by_runs.tolist())  # to measure one alone changes nothing
    enough = [num for num, regret in enumerate(regrets) if regret <= within_pct]
    return PilotPlan(
        runs=enough[0] if enough else len(by_runs),
        is_enough=bool(enough),
        within_pct=within_pct,
        regrets_pct=regrets,
    )


def _regrets(
    lines: torch.Tensor, sd_pct: float, noise_pct: float, num: int, draws: int, rng: torch.Generator
) -> torch.Tensor:
    """(num,): the mean regret of the best measured of the first 1 to `num`; `lines` (n,) are expected accuracies."""
    true = lines + sd_pct * torch.randn(draws, len(lines), generator=rng).to(lines.device)
    measured = true[:, :num] + noise_pct * torch.randn(draws, num, generator=rng).to(lines.device)
    taken = true.gather(1, measured.cummax(1).indices)
    return (true.max(1).values[:, None] - taken).double().mean(0)


def _ranked(scores_pct: torch.Tensor, least: int) -> torch.Tensor:
    """The finite ones as float64, best first."""
    known = scores_pct[scores_pct.isfinite()].double().sort(descending=True).values
    if len(known) < least:
        raise DataError(f"a ranking needs at least {least} finite predictions, got {len(known)}; score more candidates")
    return known
