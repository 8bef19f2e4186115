"""One trial's work: meta-train from the last checkpoint, one evaluation per step; nothing here knows Ray Tune.

At each step the ledger, and now and then a checkpoint, so that a trial that is interrupted anywhere ends with the same
bits. A trial has one writer, so its checkpoint needs no lease.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from cluster.checkpoints import Token, get_checkpoint, put_checkpoint, remove_checkpoints
from cluster.ledger import TrialLedger
from cluster.weights import put_blob
from dass.errors import ConfigError, ObjectNotFoundError, StoreError
from dass.meta.episodes import MetaTask
from dass.meta.train import MetaPredictor, MetaProgress, MetaTraining
from dass.meta.tuning import Trial, spec_for
from dass.predictor import PredictorSpec

STATE = Token(0, 0)


@dataclass(frozen=True, eq=False)
class TrialTasks:
    """What every trial learns from and is compared on."""

    spec: PredictorSpec  # what the maps and encodings are; the rest of it follows from the trial
    train: tuple[MetaTask, ...]
    valid: tuple[MetaTask, ...]

    def to(self, device: torch.device) -> "TrialTasks":
        """The same on this device; a task follows its maps."""
        train, valid = (
            tuple(replace(task, maps=task.maps.to(device)) for task in part) for part in (self.train, self.valid)
        )
        return replace(self, train=train, valid=valid)


class TrialRun:
    """One trial under way.

    Args:
        ledger: where it is written down.
        planned: the trial; what the ledger knows of it comes first.
        tasks: what it learns from.
        checkpoint_s: seconds between two checkpoints.
    """

    def __init__(self, ledger: TrialLedger, planned: Trial, tasks: TrialTasks, checkpoint_s: float) -> None:
        self._ledger = ledger
        self._trial = ledger.get(planned)
        self._tasks = tasks
        self._checkpoint_s = checkpoint_s
        self._training: MetaTraining[MetaPredictor] | None = None
        self._secured = time.monotonic()

    def step(self) -> Trial:
        """The trial after one evaluation more; at the first step of a trial that was interrupted, where it stands.

        What is the trial's own fault makes it a failed one.

        Raises:
            StoreError, torch.AcceleratorError: a new process, or a mended store, can go on.
        """
        if self._trial.is_settled:  # its process died after the ledger had it, and before Tune
            return self._trial
        began = time.monotonic()
        try:
            training = self._advance()
        except torch.AcceleratorError:
            raise
        except (RuntimeError, ValueError, MemoryError) as error:
            return self._keep(status="failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        seconds = round(self._trial.seconds + time.monotonic() - began, 3)
        history = training.history
        self._trial = replace(self._trial, curve=history, seconds=seconds, reason=_told(history))
        return self._secure(training)

    def _advance(self) -> MetaTraining[MetaPredictor]:
        if self._training is None:
            self._training = self._resumed()
            if self._training.history:
                return self._training
        next(self._training)
        return self._training

    def _resumed(self) -> MetaTraining[MetaPredictor]:
        """The training at its last checkpoint; one that is gone or of no use costs episodes, never the trial."""
        config, tasks = self._trial.config, self._tasks
        training = MetaTraining(spec_for(config, tasks.spec), config, tasks.train, tasks.valid)
        with suppress(ObjectNotFoundError):
            state = get_checkpoint(self._ledger.store, self._ledger.run_id(self._trial), STATE)
            with suppress(StoreError, ConfigError):
                training.restore(state)
        return training

    def _secure(self, training: MetaTraining[MetaPredictor]) -> Trial:
        """The predictor or the state first, then the ledger, then the state goes: a kill in between loses nothing."""
        store, run_id = self._ledger.store, self._ledger.run_id(self._trial)
        if self._trial.episode == self._trial.config.episodes:
            trial = self._keep(status="finished", predictor=put_blob(store, training.best().save()))
            remove_checkpoints(store, run_id)
            return trial
        if time.monotonic() - self._secured >= self._checkpoint_s:
            put_checkpoint(store, run_id, STATE, training.state_bytes())
            self._secured = time.monotonic()
        return self._keep(status="running")

    def _keep(self, **changes: object) -> Trial:
        self._trial = self._ledger.put(replace(self._trial, **changes))  # type: ignore[arg-type]
        return self._trial


def _told(history: Sequence[MetaProgress]) -> str:
    """What is worth saying of a training that went on; the first evaluation has no loss by nature."""
    num = sum(point.loss is None for point in history[1:])
    return f"the loss was not finite before {num} of {len(history) - 1} evaluations" if num else ""
