"""Training as a hash chain: every step hashes the state of the step before, so a wrong position, a state of another run
or another teacher's weights give another result, and what a run must end with is known beforehand.

`ChainCohort` stands for dass.kd.cohort.Cohort: the same arguments, yields and states, in virtual time.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dass.errors import StoreError
from dass.kd.cohort import Ended, Position, Progress
from dass.kd.member import STATE_VERSION
from dass.kd.teacher import Teacher
from dass.records import CurvePoint, Result, Run, Status
from dass.tensors import pack_tensors, unpack_tensors
from tests.chaos.kernel import World

NUM_BATCHES = 4  # optimiser steps per epoch


@dataclass(frozen=True)
class Trouble:
    """What happens to a run at a step of its own: an error, a lack of memory, a hang or the end of its process.

    times: how often; infinite for a run that can never be trained.
    """

    kind: str
    step: int
    times: float


@dataclass(frozen=True)
class ChainState:
    """One run under training, after `step` steps."""

    run: Run
    value: bytes
    step: int = 0
    curve: tuple[CurvePoint, ...] = ()

    @classmethod
    def first(cls, run: Run, teacher: bytes) -> "ChainState":
        """The state before the first step."""
        return cls(run, _hash(run.id.encode(), teacher))

    @classmethod
    def load(cls, run: Run, data: bytes) -> "ChainState":
        """The state that `save` gave."""
        header = unpack_tensors(data)[1]
        if header["run"] != run.id:
            raise StoreError(f"the state must be that of run {run.id}, got that of {header['run']}")
        curve = tuple(CurvePoint(**point) for point in header["curve"])
        return cls(run, bytes.fromhex(header["value"]), step_of(Position(**header["position"])), curve)

    def save(self) -> bytes:
        """The state in the layout of a real one, which `state_position` reads."""
        header = {"version": STATE_VERSION, "run": self.run.id, "position": asdict(position_of(self.step))}
        return pack_tensors({}, header | {"value": self.value.hex(), "curve": [asdict(point) for point in self.curve]})

    def after(self) -> "ChainState":
        """One step later; the end of an epoch has an evaluation."""
        value = _hash(self.value, b"%d" % self.step)
        step = self.step + 1
        if step % NUM_BATCHES:
            return replace(self, value=value, step=step)
        point = CurvePoint(step // NUM_BATCHES, 1.0, 1.0, 100.0 * int.from_bytes(value[:4], "big") / 2**32)
        return replace(self, value=value, step=step, curve=(*self.curve, point))

    @property
    def num_steps(self) -> int:
        """How many steps the run takes."""
        return self.run.recipe.epochs * NUM_BATCHES

    def result(self, diverged_epoch: int | None = None) -> Result:
        """What the run amounts to here."""
        accuracies = [point.valid_accuracy_pct for point in self.curve]
        return Result(
            status=Status.FINISHED if diverged_epoch is None else Status.DIVERGED,
            curve=self.curve,
            init_accuracy_pct=10.0,
            best_accuracy_pct=max(accuracies, default=None),
            final_accuracy_pct=accuracies[-1] if accuracies else None,
            final_loss=1.0 if accuracies else None,
            diverged_epoch=diverged_epoch,
        )


def right_result(run: Run, teacher: bytes, diverges_at: int | None) -> tuple[Result, bytes]:
    """What an undisturbed training gives, and its weights; diverges_at: the step after which its loss is not finite."""
    state = ChainState.first(run, teacher)
    while state.step < state.num_steps:
        state = state.after()
        if state.step == diverges_at:
            return state.result(1 + (state.step - 1) // NUM_BATCHES), state.value
    return state.result(), state.value


def step_of(position: Position) -> int:
    """The steps done at a position."""
    return position.epoch * NUM_BATCHES + position.batch


def position_of(step: int) -> Position:
    """The position after so many steps."""
    return Position(*divmod(step, NUM_BATCHES))


def weights_of(value: bytes) -> dict[str, torch.Tensor]:
    """A state dict that holds a chain's value."""
    return {"value": torch.tensor(list(value), dtype=torch.uint8)}


def value_of(teacher: Teacher | None) -> bytes:
    """The value in a teacher's weights."""
    return b"" if teacher is None else bytes(teacher.state["value"].tolist())


@dataclass
class Training:
    """What all cohorts of one simulation share.

    step_s: seconds of one step. evaluation_s: seconds of a silent stretch before the first step.
    diverges_at, troubles: by run id. memory: students that fit in a lane. is_faulty: whether passing troubles happen still.
    """

    world: World
    step_s: float
    evaluation_s: float
    memory: int
    diverges_at: Mapping[str, int]
    troubles: Mapping[str, Trouble]
    is_faulty: Callable[[], bool]
    began: Callable[[str, Run, int], None]  # lane's process, run, step that it goes on from
    stepped: Callable[[str, Run, int], None]  # lane's process, run, steps that are done now

    def __post_init__(self) -> None:
        self._met: Counter[str] = Counter()

    def meet_trouble(self, state: ChainState) -> None:
        """Let happen what happens to this run at this step."""
        trouble = self.troubles.get(state.run.id)
        if trouble is None or trouble.step != state.step or self._met[state.run.id] >= trouble.times:
            return
        if math.isfinite(trouble.times) and not self.is_faulty():
            return
        self._met[state.run.id] += 1
        world = self.world
        world.counts[f"run: {trouble.kind}"] += 1
        world.note(world.process.name, trouble.kind, state.run.id, state.step)
        if trouble.kind == "error":
            raise ValueError("simulated error of the run")
        if trouble.kind == "out of memory":
            raise MemoryError("simulated lack of memory")
        if trouble.kind == "crash":
            world.at(0, world.process.kill)
        world.park()  # a hang, or the moment before the end


class ChainCohort:
    """See the top; made with `training` first by `functools.partial`, and then as a Cohort."""

    def __init__(
        self,
        training: Training,
        runs: Sequence[Run],
        data: object,
        teacher: Teacher | None,
        *,
        states: Mapping[str, bytes],
        keep_weights: bool,
        yield_every: int,
        **_: Any,
    ) -> None:
        first = value_of(teacher)
        self._training = training
        self._keep_weights = keep_weights
        self._yield_every = yield_every
        self._who = training.world.process.name
        self._members = {
            run.id: ChainState.load(run, states[run.id]) if run.id in states else ChainState.first(run, first)
            for run in runs
        }
        if (
            len({(state.step, state.run.teacher, state.run.recipe, state.run.seed) for state in self._members.values()})
            > 1
        ):
            training.world.break_rule(
                f"{self._who} trains together what stands at different positions or has no common course"
            )
        for state in self._members.values():
            training.began(self._who, state.run, state.step)

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(state.run for state in self._members.values())

    @property
    def position(self) -> Position:
        return position_of(self.step)

    @property
    def images_per_step(self) -> int:
        return 1

    @property
    def step(self) -> int:
        return next(iter(self._members.values())).step

    def state(self, run_id: str) -> bytes:
        return self._members[run_id].save()

    def drop(self, run_id: str) -> None:
        del self._members[run_id]

    def train(self) -> Iterator[Progress]:
        training = self._training
        if len(self._members) > training.memory:
            training.world.counts["cohort breaks the memory"] += 1
            raise MemoryError("simulated lack of memory for a cohort")
        training.world.sleep(training.evaluation_s)
        num_steps = next(iter(self._members.values())).num_steps
        waiting_s, ended = 0.0, list[Ended]()
        while self._members:
            waiting_s += training.step_s * (1 + 0.2 * len(self._members))
            for run_id, state in self._members.items():
                training.meet_trouble(state)
                self._members[run_id] = state.after()
            step = self.step
            ended += self._ended(step, num_steps)
            if not self._members or step % self._yield_every == 0 or step % NUM_BATCHES == 0:
                training.world.sleep(waiting_s)
                for each in [*self.runs, *(one.run for one in ended)]:
                    training.stepped(self._who, each, step)
                yield Progress(step, num_steps, step // NUM_BATCHES, tuple(ended))
                waiting_s, ended = 0.0, []

    def _ended(self, step: int, num_steps: int) -> list[Ended]:
        ended = []
        for run_id, state in list(self._members.items()):
            diverged = self._training.diverges_at.get(run_id) == step
            if diverged or step == num_steps:
                result = state.result(1 + (step - 1) // NUM_BATCHES if diverged else None)
                weights = weights_of(state.value) if self._keep_weights and not diverged else None
                ended.append(Ended(state.run, result, weights, 1.0))
                del self._members[run_id]
        return ended


def _hash(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"|".join(parts), digest_size=16).digest()
