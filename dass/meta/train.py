"""The outer loop of meta-learning as a resumable iterator (DaSS, section 4; released code's defaults).

    training = MetaTraining(spec, config, train_tasks, valid_tasks)
    for progress in training:                      # one evaluation each, the untrained method's first
        checkpoint = training.state_bytes()        # later: training.restore(checkpoint), on an equal MetaTraining
    predictor = training.best()

What is trained, and by which loss, is the config's affair (`dass.meta.method`): `MetaConfig` trains the DaSS predictor,
`MetaD2AConfig` and `TansConfig` of `dass.baselines` their methods, all from the same tasks and episodes.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from dass.errors import ConfigError, DataError
from dass.meta.episodes import MetaTask, split_support
from dass.meta.guided import MetaConfig
from dass.meta.method import MetaMethod, MethodConfig, MethodSpec
from dass.metrics import spearman
from dass.predictor import Adapted, MetaPredictor
from dass.records import canonical_json
from dass.tensors import pack_tensors, refusing_damage, unpack_tensors
from dass.threads import Each, workers

__all__ = ["Adapted", "MetaConfig", "MetaPredictor", "MetaProgress", "MetaTraining"]

STATE_VERSION = 2

S = TypeVar("S", bound=MethodSpec)
M = TypeVar("M", bound=MetaMethod)


@dataclass(frozen=True)
class MetaProgress:
    """One evaluation, after `episode` episodes.

    loss: mean loss of the episodes since the last evaluation, for DaSS in squared units of the predictor; None before the
    first episode, and when an episode's loss was not finite, which then changed no weight.
    valid_spearman: mean over the meta-validation tasks that have one, on all students that the method was not shown;
    None if none has.
    is_best: strictly higher than at every evaluation before.
    skipped_steps: inner steps left out since the last evaluation, because their loss was not finite.
    """

    episode: int
    loss: float | None
    valid_spearman: float | None
    is_best: bool
    skipped_steps: int


class MetaTraining(Iterator[MetaProgress], Generic[M]):
    """Meta-training of one method, on the device of the tasks; weights are drawn on the CPU.

    Args:
        spec: what the method is for; must agree with `config`, as `config.spec(...)` does.
        config: how it is trained.
        train_tasks: teach. One with fewer students than `config.queries` gives what it has.
        valid_tasks: choose the best evaluation; none of them may teach.

    Raises:
        ConfigError: spec and config disagree, there is no task to teach or to choose, or one does both.
        DataError: a task's maps or encodings have other shapes than the spec's, or than the other tasks'.
    """

    def __init__(
        self, spec: S, config: MethodConfig[S, M], train_tasks: Sequence[MetaTask], valid_tasks: Sequence[MetaTask]
    ) -> None:
        config.check(spec, (*train_tasks, *valid_tasks))
        _check_tasks(spec, train_tasks, valid_tasks)
        self._identity = {
            "version": STATE_VERSION,
            "spec": canonical_json(spec),
            "config": f"{type(config).__name__} {canonical_json(config)}",
            "tasks": [[task.name, task.num_students] for task in (*train_tasks, *valid_tasks)],
        }
        self._episodes, self._eval_every = config.episodes, config.eval_every
        self._valid_tasks = tuple(valid_tasks)
        self._device = train_tasks[0].maps.device
        self._learner = config.learner(spec, train_tasks)
        self._learned = dict(self._learner.learned())
        self._optimizer = torch.optim.Adam(self._learned.values(), lr=config.lr, fused=True)
        self._best: dict[str, torch.Tensor] = {}
        self._history: list[MetaProgress] = []

    @property
    def history(self) -> tuple[MetaProgress, ...]:
        """All that was yielded, by this object or before the state it was restored from."""
        return tuple(self._history)

    def __next__(self) -> MetaProgress:
        begin, last = (self._history[-1].episode if self._history else 0), self._episodes
        if self._history and begin == last:
            raise StopIteration
        end = min(last, begin + self._eval_every) if self._history else 0
        losses, skipped = [], 0
        with workers(self._device) as each:
            for number in range(begin, end):
                loss, num_skipped = self._train_episode(number, each)
                losses.append(loss)
                skipped += num_skipped
            self._history.append(self._evaluate(end, losses, skipped, each))
        return self._history[-1]

    def best(self) -> M:
        """The method of the best evaluation yet; the present one, `is_selected` False, when none had a Spearman."""
        return self._learner.trained(self._best or self._learned, is_selected=bool(self._best))

    def state_bytes(self) -> bytes:
        """Everything that `restore` needs, at any yield or before the first: safetensors with a JSON header."""
        adam = self._optimizer.state_dict()["state"]
        tensors = dict(self._learned)
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        tensors |= {f"adam.{index}.{name}": value for index, state in adam.items() for name, value in state.items()}
        history = [dataclasses.asdict(point) for point in self._history]
        return pack_tensors(tensors, {**self._identity, "history": history})

    def restore(self, data: bytes) -> None:
        """Continue where `state_bytes` was taken; on the CPU the result has the same bits as without the break.

        Raises:
            ConfigError: the state is of another spec, config or set of tasks.
            StoreError: the bytes are damaged; what was trained here stays as it was.
        """
        tensors, header = unpack_tensors(data)
        for name, value in self._identity.items():
            if header.get(name) != value:
                raise ConfigError(
                    f"meta-training resumes only with the {name} it began with, {header.get(name)}, got {value}; "
                    "delete the checkpoint to begin anew"
                )
        with refusing_damage("a meta-training", "delete the checkpoint to begin anew"):
            learned = self._matching(tensors, "")
            best = self._matching(tensors, "best.") if any(name.startswith("best.") for name in tensors) else {}
            adam: dict[int, dict[str, torch.Tensor]] = {}
            for name in tensors:
                if name.startswith("adam."):
                    _, index, entry = name.split(".")
                    adam.setdefault(int(index), {})[entry] = self._as_learned(int(index), tensors[name])
            history = [MetaProgress(**point) for point in header["history"]]
            self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": adam})
        with torch.no_grad():
            for name, value in self._learned.items():
                value.copy_(learned[name])
        self._best, self._history = best, history

    def _matching(self, tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
        """What is learned, of a state; ValueError for another shape."""
        found = {name: tensors[prefix + name] for name in self._learned}
        for name, value in found.items():
            if value.shape != self._learned[name].shape:
                raise ValueError(f"{prefix}{name} has shape {tuple(value.shape)}")
        return found

    def _as_learned(self, index: int, value: torch.Tensor) -> torch.Tensor:
        """An entry of Adam's state, laid out in memory as what it belongs to: the fused step takes that for granted."""
        learned = list(self._learned.values())[index]
        return torch.empty_like(learned).copy_(value) if value.shape == learned.shape else value

    def _evaluate(self, episode: int, losses: Sequence[float], skipped: int, each: Each) -> MetaProgress:
        """Adapt to each meta-validation task, rank its students, and keep what was learned if it is the best.

        Students that were shown to the method, the same ones each time, are left out of the ranking.
        """
        method = self._learner.present()

        def rank(task: MetaTask) -> tuple[float, int]:
            shown, rest = split_support(task.num_students, method.num_support, task.name)
            adapted = method.adapt(task.support(shown))
            ranked = task.students(rest)
            scores = adapted.score(*ranked.seen)
            return spearman(scores.cpu(), ranked.targets_pct.cpu()), adapted.num_skipped

        ranked = list(each(rank, self._valid_tasks))
        skipped += sum(num for _, num in ranked)
        correlations = [correlation for correlation, _ in ranked]
        mean = _finite_mean([value for value in correlations if math.isfinite(value)])
        earlier = [point.valid_spearman for point in self._history if point.valid_spearman is not None]
        is_best = mean is not None and mean > max(earlier, default=-math.inf)
        if is_best:
            self._best = {name: value.detach().clone() for name, value in self._learned.items()}
        return MetaProgress(episode, _finite_mean(losses), mean, is_best, skipped)

    def _train_episode(self, number: int, each: Each) -> tuple[float, int]:
        """One step of Adam; the episode's loss before it, and the number of inner steps left out."""
        self._optimizer.zero_grad()
        loss, num_skipped = self._learner.backward(number, each)
        if math.isfinite(loss):
            self._optimizer.step()
        return loss, num_skipped


def _finite_mean(values: Sequence[float]) -> float | None:
    """The mean, or None where there is none that is a finite number."""
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None


def _check_tasks(spec: MethodSpec, train_tasks: Sequence[MetaTask], valid_tasks: Sequence[MetaTask]) -> None:
    for part, tasks in (("train", train_tasks), ("valid", valid_tasks)):
        if not tasks:
            raise ConfigError(f"meta-training needs at least 1 {part} task, got 0; give it records of a {part} task")
    both = {task.name for task in train_tasks} & {task.name for task in valid_tasks}
    if both:
        raise ConfigError(
            f"a task must not both teach and choose the predictor, got {sorted(both)} in both; drop one use"
        )
    sides = train_tasks[0].maps.shape[2:]
    for task in (*train_tasks, *valid_tasks):
        received = (task.arch.shape[1], task.maps.shape[1], task.maps.shape[2:])
        if received != (spec.arch_dim, spec.num_channels, sides):
            raise DataError(
                f"meta task {task.name!r} must have encodings of {spec.arch_dim} and maps of {spec.num_channels} "
                f"channels and {tuple(sides)}, got {received[0]}, {received[1]} and {tuple(received[2])}; "
                "compute them in the predictor's space and resolution"
            )
