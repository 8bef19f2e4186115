"""Cohorts: K students of one teacher trained in lockstep, with one data pipeline and one teacher pass per batch.

A run's result does not depend on its company: data order and augmentation derive from (task, recipe, seed, epoch), the
initial weights from the run, and no arithmetic is shared between students. On CPU the same run therefore gives the same
bits alone, in a cohort, and regrouped after a resume, for the same torch build, CPU type, threads and memory format.

State is kept per run, never per cohort, and can be taken at every yield:

    cohort = Cohort(runs, data, teacher)
    for progress in cohort.train():
        for ended in progress.ended: ...           # a Result, and the weights if they are kept
        checkpoint = cohort.state(run.id)          # later: Cohort(runs, data, teacher, states={run.id: checkpoint})
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.data.batches import BatchSource, PartName
from dass.errors import ConfigError, StoreError
from dass.kd.logits import TeacherLogits
from dass.kd.member import Member, Position, state_position
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.networks.small_resnet import STRIDES
from dass.precision import full_float32, rounding
from dass.records import CurvePoint, Recipe, Result, Run, Status
from dass.remap import remap
from dass.seeding import generator

__all__ = ["Cohort", "Ended", "Position", "Progress", "cosine_lr", "evaluate", "state_position"]


@dataclass(frozen=True)
class Ended:
    """A run that ended: its result, the state dict of its best epoch on valid where weights are kept, and its cost.

    seconds: the run's share of the wall time of all cohorts that it was trained in, resumed ones included.
    """

    run: Run
    result: Result
    weights: Mapping[str, torch.Tensor] | None
    seconds: float


@dataclass(frozen=True)
class Progress:
    """What a yield tells: optimiser steps done and in all, epochs completed, and the runs that ended since the last."""

    step: int
    num_steps: int
    epoch: int
    ended: tuple[Ended, ...] = ()


def cosine_lr(lr: float, step: int, num_steps: int) -> float:
    """The learning rate of optimiser step `step` (from 0): cosine from lr to 0, no warm-up, no restarts."""
    return 0.5 * lr * (1 + math.cos(math.pi * step / num_steps))


class Cohort:
    """Students that share task, teacher, recipe and seed, trained in lockstep on the device of `data`.

    Args:
        runs: at least one; they share task, teacher, recipe and seed.
        data: batches of the runs' task, resident on the device or streamed.
        teacher: what the students learn from and are remapped from; None for runs that train a teacher.
        states: saved states by run id, all at one position; runs without one start from their initial weights, so
            either every run has a state or none.
        keep_weights: keep each run's best weights on valid, and measure test once on them.
        yield_every: optimiser steps between two yields.
        memory_format: `torch.channels_last` or `torch.contiguous_format`; a part of what fixes the bits of a result.
        logits: where the teacher's logits are kept for the next cohort of the same task, teacher, recipe and seed;
            None keeps none. Results are the same with and without.

    Raises:
        ConfigError: the runs do not form a cohort, the teacher is missing, or weights are to be kept and a state was
            saved without.
        SpaceError: the teacher's weights do not fit its architecture or the task's classes.
        StoreError: a state is damaged, of another run, or at another position than the others.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        data: BatchSource,
        teacher: Teacher | None,
        *,
        states: Mapping[str, bytes] | None = None,
        keep_weights: bool = False,
        yield_every: int = 50,
        memory_format: torch.memory_format = torch.channels_last,
        logits: TeacherLogits | None = None,
    ) -> None:
        self._recipe = _shared_recipe(runs, data, teacher)
        self._seed = runs[0].seed
        self._data = data
        self._yield_every = yield_every
        self._keep_weights = keep_weights
        self._memory_format = memory_format
        self._num_classes = data.task.num_classes
        network = None if teacher is None else teacher.network(self._num_classes, data.device)
        self._teacher_network = (
            None if network is None or self._recipe.loss == "ce" else _laid_out(network, memory_format)
        )
        self._logits = TeacherLogits(max_bytes=0) if logits is None else logits
        if self.images_per_step == 1 and data.task.resolution == math.prod(STRIDES):
            raise ConfigError(
                f"a step on a last map of one place needs 2 images or more to normalise, got 1 of {data.task.resolution} px; "
                "set recipe.batch_size=16"
            )
        self._steps_per_epoch = len(data.train_epoch(self._recipe, self._seed, 0))
        self._members = [Member(run, self._initial_network(run, teacher), keep_weights=keep_weights) for run in runs]
        self._position = self._resume(states or {})
        self._clock = math.nan  # set when training begins
        # all that decides the teacher's logits of a batch, to the bit
        self._course = (
            data.task.id,
            runs[0].teacher,
            self._recipe.id,
            self._seed,
            data.device,
            memory_format,
            torch.get_num_threads(),
        )

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that are still being trained."""
        return tuple(member.run for member in self._members)

    @property
    def position(self) -> Position:
        """Where the runs stand."""
        return self._position

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._position.epoch * self._steps_per_epoch + self._position.batch

    @property
    def images_per_step(self) -> int:
        """Images that each student sees in an optimiser step."""
        return min(self._recipe.batch_size, self._data.num_images("train"))

    def state(self, run_id: str) -> bytes:
        """The state of one run at the last yield; resuming from it continues bit-exactly on CPU.

        Raises:
            ValueError: the run is none that is still being trained, or nothing was yielded yet.
        """
        member = self._member(run_id)
        if self._position == Position():
            raise ValueError(
                "a state can be taken from the first yield on, got asked before; iterate over train() first"
            )
        return member.save(self._position)

    def drop(self, run_id: str) -> None:
        """Stop training one run (its lease is lost, say) without touching the others; between yields only."""
        self._members.remove(self._member(run_id))

    def train(self) -> Iterator[Progress]:
        """Train to the end; yields every `yield_every` steps, after each evaluation, and when a run ends."""
        self._clock = time.perf_counter()
        steps_per_epoch = self._steps_per_epoch
        num_steps = self._recipe.epochs * steps_per_epoch
        if self._position == Position():
            for member, (_, accuracy) in zip(self._members, self._evaluate("valid"), strict=True):
                member.init_accuracy_pct = accuracy
        for epoch in range(self._position.epoch, self._recipe.epochs):
            batches = self._data.train_epoch(self._recipe, self._seed, epoch)
            for member in self._members:
                member.network.train()
            for index in range(self._position.batch, steps_per_epoch):
                step = epoch * steps_per_epoch + index
                self._step(*batches.batch(index), cosine_lr(self._recipe.lr, step, num_steps))
                self._position = Position(epoch, index + 1)
                if (step + 1) % self._yield_every == 0 and index + 1 < steps_per_epoch:
                    self._charge()
                    yield Progress(step + 1, num_steps, epoch, self._drop_diverged(epoch + 1))
                if not self._members:
                    return
            self._charge()
            ended = self._close_epoch(epoch + 1, steps_per_epoch)
            self._position = Position(epoch + 1, 0)
            step = (epoch + 1) * steps_per_epoch
            if ended or self._is_evaluated(epoch + 1) or step % self._yield_every == 0:
                yield Progress(step, num_steps, epoch + 1, ended)
            if not self._members:
                return

    def _initial_network(self, run: Run, teacher: Teacher | None) -> torch.nn.Module:
        if teacher is None or run.recipe.init == "scratch":
            network = build(run.student, self._num_classes, generator("init", run.id))
        else:
            network = build(run.student, self._num_classes)
            network.load_state_dict(remap(teacher.state, teacher.student, run.student, run.recipe.init))
        return _laid_out(network.to(self._data.device), self._memory_format)

    def _resume(self, states: Mapping[str, bytes]) -> Position:
        positions = {
            member.load(states[member.run.id]) if member.run.id in states else Position() for member in self._members
        }
        if len(positions) > 1:
            raise StoreError(
                f"the runs of a cohort must stand at one position, got {sorted(positions, key=str)}; cut the cohort by position"
            )
        return positions.pop()

    def _member(self, run_id: str) -> Member:
        for member in self._members:
            if member.run.id == run_id:
                return member
        raise ValueError(f"the run must be one that is still being trained, got {run_id}; see Cohort.runs")

    def _step(self, images: torch.Tensor, labels: torch.Tensor, lr: float) -> None:
        """Train all members on the batch of the position."""
        images = images.contiguous(memory_format=self._memory_format)
        with rounding(self._recipe.precision, images.device):
            logits = None if self._teacher_network is None else self._taught(self._teacher_network, images)
            for member in self._members:
                member.step(images, labels, logits, lr)

    def _taught(self, teacher: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The teacher's logits of the batch of the position, computed unless they are held."""
        epoch, index = self._position.epoch, self._position.batch
        logits = self._logits.get(self._course, epoch, index)
        if logits is None:
            with torch.no_grad():
                logits = teacher(images)
            self._logits.put(self._course, epoch, index, logits)
        return logits

    def _charge(self) -> None:
        """Share the wall time since the last call among the members."""
        now = time.perf_counter()
        for member in self._members:
            member.seconds += (now - self._clock) / len(self._members)
        self._clock = now

    def _is_evaluated(self, epoch: int) -> bool:
        return epoch % self._recipe.eval_every == 0 or epoch == self._recipe.epochs

    def _drop_diverged(self, epoch: int) -> tuple[Ended, ...]:
        """Drop the members whose loss of the epoch under way is not finite; it cannot become finite again."""
        is_finite = torch.isfinite(torch.stack([member.loss_sum for member in self._members])).tolist()
        diverged = [member for member, finite in zip(self._members, is_finite, strict=True) if not finite]
        return tuple(self._drop_as_diverged(member, epoch) for member in diverged)

    def _drop_as_diverged(self, member: Member, epoch: int) -> Ended:
        self._members.remove(member)
        return Ended(member.run, member.result(Status.DIVERGED, epoch=epoch), None, member.seconds)

    def _close_epoch(self, epoch: int, num_batches: int) -> tuple[Ended, ...]:
        """Evaluate when the recipe asks; returns the runs that ended with this epoch."""
        ended = list(self._drop_diverged(epoch))
        if self._members and self._is_evaluated(epoch):
            for member, (loss, accuracy) in zip(list(self._members), self._evaluate("valid"), strict=True):
                if math.isfinite(loss):
                    member.record(CurvePoint(epoch, float(member.loss_sum) / num_batches, loss, accuracy))
                else:
                    ended.append(self._drop_as_diverged(member, epoch))
        for member in self._members:
            member.loss_sum.zero_()
        self._charge()
        return tuple(ended + self._finish() if epoch == self._recipe.epochs else ended)

    def _finish(self) -> list[Ended]:
        """End all members; where weights are kept, those of the best epoch are measured once on test."""
        finishing = self._members
        test_pct: list[float | None] = [None] * len(finishing)
        if self._keep_weights:
            for member in finishing:
                member.network.load_state_dict(member.best_weights)
            if self._data.num_images("test"):
                test_pct = [accuracy for _, accuracy in self._evaluate("test")]
        self._charge()
        self._members = []
        return [
            Ended(m.run, m.result(Status.FINISHED, pct), m.best_weights if self._keep_weights else None, m.seconds)
            for m, pct in zip(finishing, test_pct, strict=True)
        ]

    def _evaluate(self, part: PartName) -> list[tuple[float, float]]:
        """Mean cross-entropy and top-1 accuracy in percent of each member on the whole part."""
        networks = [member.network.eval() for member in self._members]
        return evaluate(networks, self._data, part, self._memory_format)


@full_float32()
def evaluate(
    networks: Sequence[torch.nn.Module],
    data: BatchSource,
    part: PartName = "valid",
    memory_format: torch.memory_format = torch.channels_last,
) -> list[tuple[float, float]]:
    """Mean cross-entropy and top-1 accuracy in percent of each network on the whole part, every image once, in float32.

    The networks are used in the mode that they are in. All share one pass over the data.
    """
    losses = torch.zeros(len(networks), dtype=torch.float64, device=data.device)
    correct = torch.zeros(len(networks), dtype=torch.int64, device=data.device)
    with torch.inference_mode():
        for images, labels in data.evaluation(part):
            batch = images.contiguous(memory_format=memory_format)
            for index, network in enumerate(networks):
                logits = network(batch).float()
                losses[index] += F.cross_entropy(logits, labels, reduction="sum")
                correct[index] += (logits.argmax(dim=1) == labels).sum()
    num = data.num_images(part)
    return [(loss / num, 100.0 * hits / num) for loss, hits in zip(losses.tolist(), correct.tolist(), strict=True)]


def _laid_out(network: torch.nn.Module, memory_format: torch.memory_format) -> torch.nn.Module:
    return network.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]  # missing in its stubs


def _shared_recipe(runs: Sequence[Run], data: BatchSource, teacher: Teacher | None) -> Recipe:
    if len({(run.task, run.teacher, run.recipe.id, run.seed) for run in runs}) != 1 or len(set(runs)) != len(runs):
        raise ConfigError(
            f"a cohort needs at least one run, all of one task, teacher, recipe and seed and no two equal, got {len(runs)} "
            "runs that differ; cut them with cluster.plan.cut_cohorts"
        )
    run = runs[0]
    if run.task != data.task.id:
        raise ConfigError(f"the runs' task must be the data's, got {run.task} and {data.task.id}; load the runs' task")
    if (teacher.id if teacher else None) != run.teacher:
        raise ConfigError(
            f"the runs' teacher must be the one given, got {run.teacher} and {teacher and teacher.id}; load the runs' teacher"
        )
    if teacher is None and (run.recipe.loss != "ce" or run.recipe.init != "scratch"):
        raise ConfigError(
            "runs without a teacher need recipe.loss='ce' and recipe.init='scratch', got "
            f"{run.recipe.loss!r} and {run.recipe.init!r}; set both, or name the runs' teacher"
        )
    return run.recipe
