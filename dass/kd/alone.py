"""One run trained to its end in this process: what lanes do for many, without a store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from dass.data.batches import BatchSource
from dass.errors import ConfigError
from dass.kd.cohort import Cohort
from dass.kd.teacher import Teacher
from dass.precision import full_float32
from dass.records import Result, Run

YIELD_EVERY = 10  # optimiser steps between two calls of `progress`


@dataclass(frozen=True, eq=False)
class Trained:
    """A run that finished; weights: those of its best epoch on valid, on the CPU; accuracy_pct: theirs on valid."""

    run: Run
    result: Result
    weights: Mapping[str, torch.Tensor] = field(repr=False)
    accuracy_pct: float


@full_float32()
def train_alone(
    run: Run, data: BatchSource, teacher: Teacher | None, progress: Callable[[int, int], None] = lambda *_: None
) -> Trained:
    """Train the run on the device of `data`; test is measured once, on the weights of the best epoch.

    On a CPU the result is that of a lane of as many threads, bit for bit; `Cohort` says why.

    Args:
        run: what to train.
        data: batches of the run's task.
        teacher: what the student learns from; None for a run that trains a teacher.
        progress: called with the optimiser steps done and of all.

    Raises:
        ConfigError: the training diverged. Others as `Cohort`.
    """
    cohort = Cohort([run], data, teacher, keep_weights=True, yield_every=YIELD_EVERY)
    for each in cohort.train():
        progress(each.step, each.num_steps)
        for ended in each.ended:
            result = ended.result
    if ended.weights is None or result.best_accuracy_pct is None:
        raise ConfigError(
            f"a training must not diverge, got one of {run.student.key} that did in epoch {result.diverged_epoch}; give "
            f"a recipe with an lr below {run.recipe.lr:g}"
        )
    weights = {name: tensor.cpu().contiguous() for name, tensor in ended.weights.items()}
    return Trained(run, result, weights, result.best_accuracy_pct)
