"""Which hyper-parameters of meta-training to try, and what to conclude: all of a tuning that needs no machine.

    configs = draws(base, tune, 12)                  the base itself, then 11 others
    trials                                           trained, most of them stopped early, at the rungs
    best = finalists(trials, base, tune)             these are trained to the end with several seeds each
    number = winner({trial.number: runs, ...})       by the mean over its seeds

A trial is compared by the best meta-validation Spearman that it has reached, because the predictor of that evaluation
is the one it would leave.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from dass.errors import ConfigError
from dass.meta.train import MetaConfig, MetaProgress
from dass.predictor import PredictorSpec
from dass.seeding import generator

TrialStatus = Literal["pending", "running", "finished", "stopped", "failed"]

WORST = -2.0  # what counts for a Spearman that is not defined: less than any that is

# Names and values of what is tried. Each name has a random stream of its own, so a name more leaves the others' draws.
LOG_RANGES: Mapping[str, tuple[float, float]] = {"lr": (2e-4, 2e-2), "rate_init": (5e-4, 5e-2)}
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "inner_steps": (1, 2, 3),
    "order": ("second", "first"),
    "guided": (True, True, True, False),
    "inputs": ("SAT", "SA", "ST", "AR", "SATR"),  # blind to the student's map it would not be distillation-aware
    "encoding": ("slots", "stages", "summary"),
    "loss": ("squared", "correlation"),
    "hidden_dim": (32, 64, 128, 256),
    "map_norm": ("none", "layer"),
    "unit": ("percent", "task_free", "teacher"),
}
QUERY_SHARES = (1.0, 0.5)  # of the base's queries
KEPT = 0.5  # each setting stays the base's with this probability: a base is a good guess, or it would not be one

_INNER = ("inner_steps", "order", "rate_init")  # what a predictor that does not adapt makes no use of


@dataclass(frozen=True)
class TuneConfig:
    """How the hyper-parameters of meta-training are found; `meta-train --tune N` says how many are tried."""

    seed: int = field(default=0, metadata={"help": "seed of the hyper-parameters drawn"})
    rungs: int = field(default=3, metadata={"help": "lengths at which trials are compared, the last one whole"})
    reduction_factor: int = field(
        default=3, metadata={"help": "one in so many trials goes on at a rung, and the next is so much longer"}
    )
    finalists: int = field(default=3, metadata={"help": "best trials that are trained with several seeds"})
    seeds: int = field(default=3, metadata={"help": "seeds of each finalist, its own among them"})

    def __post_init__(self) -> None:
        for name, least in (("rungs", 1), ("reduction_factor", 2), ("finalists", 1), ("seeds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"tune.{name} must be >= {least}, got {getattr(self, name)}; set tune.{name}")

    @property
    def of_trials(self) -> tuple[int, int, int]:
        """What a trial depends on; the rest only says what is made of the trials."""
        return self.seed, self.rungs, self.reduction_factor


@dataclass(frozen=True)
class Trial:
    """One training in a tuning, as far as it has come.

    number: of the hyper-parameters. predictor: SHA-256 of what a finished one leaves. reason: why it failed, or what
    was wrong on the way. seconds: spent on it, what was lost to interruptions included.
    """

    number: int
    config: MetaConfig
    status: TrialStatus = "pending"
    curve: tuple[MetaProgress, ...] = ()
    predictor: str | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def episode(self) -> int:
        """Episodes behind it."""
        return self.curve[-1].episode if self.curve else 0

    @property
    def best(self) -> float | None:
        """The highest meta-validation Spearman of its curve; None where none is defined."""
        return max((point.valid_spearman for point in self.curve if point.valid_spearman is not None), default=None)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do; a failure is tried again next time."""
        return self.status in ("finished", "stopped")


def draws(base: MetaConfig, tune: TuneConfig, num: int) -> list[MetaConfig]:
    """`num` different configurations: `base` itself, then random changes of it; more of them begin with the same."""
    drawn = [base]
    while len(drawn) < num:
        attempt = 0
        while (config := _draw(base, tune.seed, len(drawn), attempt)) in drawn:
            attempt += 1
        drawn.append(config)
    return drawn


def grace_episodes(base: MetaConfig, tune: TuneConfig) -> int:
    """The first rung: no trial is stopped before. Each further one is `reduction_factor` times as long."""
    return math.ceil(base.episodes / int(tune.reduction_factor ** (tune.rungs - 1)))


def last_rung(base: MetaConfig, tune: TuneConfig) -> int:
    """The last length, short of the whole, at which a trial may be stopped."""
    return grace_episodes(base, tune) * int(tune.reduction_factor ** max(0, tune.rungs - 2))


def finalists(trials: Sequence[Trial], base: MetaConfig, tune: TuneConfig) -> list[Trial]:
    """The best trials, best first: those that reached the last rung, then, where these are too few, the others.

    A tie goes to the lower number. A trial that failed is none.
    """
    settled = [trial for trial in trials if trial.is_settled]
    rung = last_rung(base, tune)
    settled.sort(key=lambda trial: (trial.episode < rung, -_value(trial), trial.number))
    return settled[: tune.finalists]


def seeded(config: MetaConfig, num: int) -> list[MetaConfig]:
    """The configuration with its own seed and those that follow, `num` in all."""
    return [dataclasses.replace(config, seed=config.seed + offset) for offset in range(num)]


def mean_spearman(runs: Sequence[Trial]) -> float:
    """Over the seeds of one finalist; a run without a Spearman, or that failed, counts as the worst."""
    return sum(_value(run) for run in runs) / len(runs)


def winner(runs: Mapping[int, Sequence[Trial]]) -> int:
    """The finalist, by its number, of the highest mean over seeds; a tie goes to the lower number."""
    return min(runs, key=lambda number: (-mean_spearman(runs[number]), number))


def best_seed(runs: Sequence[Trial]) -> Trial:
    """The run whose predictor is kept, of those that finished; a tie goes to the earlier seed.

    Meta-validation chose the evaluation within each run; that it chooses among seeds too costs nothing more. What the
    configuration is worth is the mean over the seeds, not this run's Spearman.
    """
    return max((run for run in runs if run.status == "finished"), key=lambda run: (_value(run), -run.config.seed))


def varying(configs: Sequence[MetaConfig]) -> list[str]:
    """Names of the settings in which these configurations differ."""
    names = [f.name for f in dataclasses.fields(MetaConfig)]
    return [name for name in names if len({getattr(config, name) for config in configs}) > 1]


def spec_for(config: MetaConfig, spec: PredictorSpec) -> PredictorSpec:
    """The spec of a predictor trained by `config` on the maps and encodings that `spec` describes."""
    return config.spec(
        space=spec.space,
        resolution=spec.resolution,
        num_channels=spec.num_channels,
        arch_dim=spec.arch_dim,
        noise_sha=spec.noise_sha,
        remap_mode=spec.remap_mode,
        recipe=spec.recipe,
    )


def _value(trial: Trial) -> float:
    return WORST if trial.best is None or trial.status == "failed" else trial.best


def _draw(base: MetaConfig, seed: int, number: int, attempt: int) -> MetaConfig:
    """One draw, in which what has no effect stands as in the base, so that equal trainings are equal values."""

    def unit(name: str) -> float:
        return float(torch.rand((), generator=generator("tune", seed, number, attempt, name), dtype=torch.float64))

    drawn: dict[str, Any] = {
        name: float(f"{low * (high / low) ** unit(name):.3g}") for name, (low, high) in LOG_RANGES.items()
    }
    drawn |= {name: values[int(unit(name) * len(values))] for name, values in CHOICES.items()}
    drawn["queries"] = max(1, int(base.queries * QUERY_SHARES[int(unit("queries") * len(QUERY_SHARES))]))
    drawn |= {name: getattr(base, name) for name in drawn if unit(f"keep {name}") < KEPT}
    if not drawn["guided"]:
        drawn |= {name: getattr(base, name) for name in _INNER}
    return dataclasses.replace(base, **drawn)
