"""The outer loop of meta-learning as a resumable iterator (DaSS, section 4; released code's defaults).

    training = MetaTraining(spec, config, train_tasks, valid_tasks)
    for progress in training:                      # one evaluation each, the untrained predictor's first
        checkpoint = training.state_bytes()        # later: training.restore(checkpoint), on an equal MetaTraining
    predictor = training.best()

Per episode and task: adapt to the teacher, predict the queries, mean squared error; Adam on the mean over tasks moves
the weights phi and the inner rates alpha alike.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from dass.errors import ConfigError, DataError
from dass.meta.adapt import Example, InnerLoop, Order, outer_backward
from dass.meta.episodes import MetaTask, draw_episode
from dass.metrics import spearman
from dass.predictor import (
    Adapted,
    InputSet,
    MapNorm,
    MetaPredictor,
    Predictor,
    PredictorSpec,
    Prepared,
    Unit,
    support_inputs,
    to_unit,
)
from dass.records import Init
from dass.tensors import pack_tensors, unpack_tensors
from dass.threads import Each, workers
from dass.windows import to_rows, windows

__all__ = ["Adapted", "MetaConfig", "MetaPredictor", "MetaProgress", "MetaTraining"]

STATE_VERSION = 1


@dataclass(frozen=True)
class MetaConfig:
    """How the predictor is meta-trained. The defaults are those of the released code (algorithms: section 13)."""

    episodes: int = field(default=1000, metadata={"help": "episodes, one Adam step each"})
    queries: int = field(default=50, metadata={"help": "students predicted per task and episode; fewer if fewer exist"})
    tasks_per_episode: int = field(default=8, metadata={"help": "tasks per episode; all of them if there are no more"})
    lr: float = field(default=5e-4, metadata={"help": "Adam's learning rate, for weights and inner rates"})
    rate_init: float = field(default=0.005, metadata={"help": "inner learning rate that every weight begins with"})
    inner_steps: int = field(default=1, metadata={"help": "gradient steps on the teacher"})
    order: Order = field(default="second", metadata={"help": "second: differentiate through the inner steps"})
    guided: bool = field(default=True, metadata={"help": "adapt to the teacher; false leaves the inner steps out"})
    inputs: InputSet = field(default="SAT", metadata={"help": "what is seen: student map, architecture, teacher map"})
    hidden_dim: int = field(default=64, metadata={"help": "width of the architecture embedding and of the fusion"})
    map_norm: MapNorm = field(default="none", metadata={"help": "layer normalises each map as a whole"})
    eval_every: int = field(default=20, metadata={"help": "episodes between evaluations; the last one has one too"})
    seed: int = field(default=2, metadata={"help": "seed of the first weights and of the episodes"})
    unit: Unit = field(default="percent", metadata={"help": "percent, or task_free: (percent - 50) / 10"})

    def __post_init__(self) -> None:
        for name in ("episodes", "queries", "tasks_per_episode", "inner_steps", "hidden_dim", "eval_every"):
            self._check(name, getattr(self, name) >= 1, ">= 1")
        self._check("lr", self.lr > 0 and math.isfinite(self.lr), "a finite number > 0")
        self._check("order", self.order in ("second", "first"), "second or first")
        self.spec(space="any", resolution=8, num_channels=1, arch_dim=1, noise_sha="")

    def _check(self, name: str, is_legal: bool, rule: str) -> None:
        if not is_legal:
            raise ConfigError(f"meta.{name} must be {rule}, got {getattr(self, name)!r}; set meta.{name}")

    def spec(
        self,
        *,
        space: str,
        resolution: int,
        num_channels: int,
        arch_dim: int,
        noise_sha: str,
        remap_mode: Init = "copy_paste_first",
    ) -> PredictorSpec:
        """The spec of a predictor trained this way; the arguments say what its maps and encodings are made from."""
        return PredictorSpec(
            space=space,
            resolution=resolution,
            num_channels=num_channels,
            arch_dim=arch_dim,
            noise_sha=noise_sha,
            remap_mode=remap_mode,
            inputs=self.inputs,
            hidden_dim=self.hidden_dim,
            unit=self.unit,
            inner_steps=self.inner_steps,
            guided=self.guided,
            rate_init=self.rate_init,
            map_norm=self.map_norm,
        )


@dataclass(frozen=True)
class MetaProgress:
    """One evaluation, after `episode` episodes.

    loss: mean outer loss since the last evaluation, in squared units of the predictor; None before the first episode,
    and when an episode's loss was not finite, which then changed no weight.
    valid_spearman: mean over the meta-validation tasks that have one, on all their students; None if none has.
    is_best: strictly higher than at every evaluation before.
    skipped_steps: inner steps left out since the last evaluation, because their loss was not finite.
    """

    episode: int
    loss: float | None
    valid_spearman: float | None
    is_best: bool
    skipped_steps: int


class MetaTraining(Iterator[MetaProgress]):
    """Meta-training of one predictor, on the device of the tasks; weights are drawn on the CPU.

    Args:
        spec: what the predictor is for; must agree with `config`, as `config.spec(...)` does.
        config: how it is trained.
        train_tasks: teach. One with fewer students than `config.queries` gives what it has.
        valid_tasks: choose the best evaluation; none of them may teach.

    Raises:
        ConfigError: spec and config disagree, there is no task to teach or to choose, or one does both.
        DataError: a task's maps or encodings have other shapes than the spec's, or than the other tasks'.
    """

    def __init__(
        self, spec: PredictorSpec, config: MetaConfig, train_tasks: Sequence[MetaTask], valid_tasks: Sequence[MetaTask]
    ) -> None:
        _check_agreement(spec, config)
        _check_tasks(spec, train_tasks, valid_tasks)
        self._config = config
        self._train_tasks, self._valid_tasks = tuple(train_tasks), tuple(valid_tasks)
        self._device = train_tasks[0].maps.device
        self._model = Predictor(spec, config.seed).to(self._device)
        self._phi = dict(self._model.named_parameters())
        self._rates = {
            name: torch.full_like(value, config.rate_init, requires_grad=True) for name, value in self._phi.items()
        }
        self._optimizer = torch.optim.Adam([*self._phi.values(), *self._rates.values()], lr=config.lr, fused=True)
        self._loop = InnerLoop(config.inner_steps, config.order, config.guided)
        self._lessons = [_Lesson.of(task, self._model) for task in train_tasks]
        self._best: dict[str, torch.Tensor] = {}
        self._history: list[MetaProgress] = []

    @property
    def history(self) -> tuple[MetaProgress, ...]:
        """All that was yielded, by this object or before the state it was restored from."""
        return tuple(self._history)

    def __next__(self) -> MetaProgress:
        begin, last = (self._history[-1].episode if self._history else 0), self._config.episodes
        if self._history and begin == last:
            raise StopIteration
        end = min(last, begin + self._config.eval_every) if self._history else 0
        losses, skipped = [], 0
        with workers(self._device) as each:
            for number in range(begin, end):
                loss, num_skipped = self._train_episode(number, each)
                losses.append(loss)
                skipped += num_skipped
            self._history.append(self._evaluate(end, losses, skipped, each))
        return self._history[-1]

    def best(self) -> MetaPredictor:
        """The predictor of the best evaluation yet; the present one, `is_selected` False, when none had a Spearman."""
        tensors = self._best or self._learned()
        model = Predictor(self._model.spec, seed=0)
        model.load_state_dict({name: tensors[f"phi.{name}"] for name in self._phi})
        rates = {name: tensors[f"rate.{name}"].cpu().clone() for name in self._phi}
        return MetaPredictor(model, rates, is_selected=bool(self._best))

    def state_bytes(self) -> bytes:
        """Everything that `restore` needs, at any yield or before the first: safetensors with a JSON header."""
        adam = self._optimizer.state_dict()["state"]
        tensors = self._learned()
        tensors |= {f"best.{name}": value for name, value in self._best.items()}
        tensors |= {f"adam.{index}.{name}": value for index, state in adam.items() for name, value in state.items()}
        history = [dataclasses.asdict(point) for point in self._history]
        return pack_tensors(tensors, {**self._identity(), "history": history})

    def restore(self, data: bytes) -> None:
        """Continue where `state_bytes` was taken; on the CPU the result has the same bits as without the break.

        Raises:
            ConfigError: the state is of another spec, config or set of tasks.
            StoreError: the bytes are damaged.
        """
        tensors, header = unpack_tensors(data)
        for name, value in self._identity().items():
            if header.get(name) != value:
                raise ConfigError(
                    f"meta-training resumes only with the {name} it began with, {header.get(name)}, got {value}; "
                    "delete the checkpoint to begin anew"
                )
        with torch.no_grad():
            for name, value in self._learned().items():
                value.copy_(tensors[name])
        adam: dict[int, dict[str, torch.Tensor]] = {}
        for name in tensors:
            if name.startswith("adam."):
                _, index, entry = name.split(".")
                adam.setdefault(int(index), {})[entry] = self._as_learned(int(index), tensors[name])
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": adam})
        self._best = {name.removeprefix("best."): tensors[name] for name in tensors if name.startswith("best.")}
        self._history = [MetaProgress(**point) for point in header["history"]]

    def _as_learned(self, index: int, value: torch.Tensor) -> torch.Tensor:
        """An entry of Adam's state, laid out in memory as what it belongs to: the fused step takes that for granted."""
        learned = [*self._phi.values(), *self._rates.values()][index]
        return torch.empty_like(learned).copy_(value) if value.shape == learned.shape else value

    def _identity(self) -> dict[str, Any]:
        tasks = [[task.name, task.num_students] for task in (*self._train_tasks, *self._valid_tasks)]
        spec, config = dataclasses.asdict(self._model.spec), dataclasses.asdict(self._config)
        return {"version": STATE_VERSION, "spec": spec, "config": config, "tasks": tasks}

    def _learned(self) -> dict[str, torch.Tensor]:
        """Weights and rates by the names of a checkpoint; the live tensors, not copies."""
        learned = {f"phi.{name}": value.detach() for name, value in self._phi.items()}
        return learned | {f"rate.{name}": value.detach() for name, value in self._rates.items()}

    def _evaluate(self, episode: int, losses: Sequence[float], skipped: int, each: Each) -> MetaProgress:
        """Adapt to each meta-validation teacher, rank all its students, and keep the weights if they are the best."""
        predictor = MetaPredictor(self._model, self._rates)

        def rank(task: MetaTask) -> tuple[float, int]:
            adapted = predictor.adapt(task.teacher_arch, task.teacher_map, task.teacher_accuracy_pct)
            scores = adapted.score(task.maps, task.arch)
            return spearman(scores.cpu(), task.targets_pct.cpu()), adapted.num_skipped

        ranked = list(each(rank, self._valid_tasks))
        skipped += sum(num for _, num in ranked)
        correlations = [correlation for correlation, _ in ranked]
        mean = _finite_mean([value for value in correlations if math.isfinite(value)])
        earlier = [point.valid_spearman for point in self._history if point.valid_spearman is not None]
        is_best = mean is not None and mean > max(earlier, default=-math.inf)
        if is_best:
            self._best = {name: value.clone() for name, value in self._learned().items()}
        return MetaProgress(episode, _finite_mean(losses), mean, is_best, skipped)

    def _train_episode(self, number: int, each: Each) -> tuple[float, int]:
        """One Adam step; the outer loss before it, and the number of inner steps left out."""
        episode = draw_episode(
            [task.num_students for task in self._train_tasks],
            seed=self._config.seed,
            number=number,
            num_tasks=self._config.tasks_per_episode,
            num_queries=self._config.queries,
        )
        examples = [
            partial(self._lessons[task].example, chosen.to(self._device))
            for task, chosen in zip(episode.tasks, episode.queries, strict=True)
        ]
        self._optimizer.zero_grad()
        loss, num_skipped = outer_backward(self._model.call, self._phi, self._rates, examples, self._loop, each)
        if math.isfinite(loss):
            self._optimizer.step()
        return loss, num_skipped


@dataclass(frozen=True, eq=False)
class _Lesson:
    """A task as episodes read it: the maps of its students in rows (`to_rows`), accuracies in the predictor's unit."""

    rows: torch.Tensor
    sides: tuple[int, int]
    arch: torch.Tensor
    targets: torch.Tensor
    support: Prepared
    target: torch.Tensor

    @classmethod
    def of(cls, task: MetaTask, model: Predictor) -> "_Lesson":
        with torch.inference_mode(mode=False), torch.no_grad():  # maps of inference mode take no part in autograd
            return cls(
                rows=to_rows(model.normalise(task.maps)),
                sides=(task.maps.shape[2], task.maps.shape[3]),
                arch=task.arch.clone(),
                targets=to_unit(task.targets_pct, model.spec.unit),
                support=model.prepare(support_inputs(task.teacher_arch, task.teacher_map)),
                target=to_unit(task.maps.new_tensor(task.teacher_accuracy_pct), model.spec.unit),
            )

    def example(self, chosen: torch.Tensor) -> Example:
        """The teacher as support, these students, int64 (n_q,), as queries."""
        read = windows(self.rows, *self.sides, chosen)
        queries = Prepared(read, self.arch[chosen], self.support.teacher)
        return Example(self.support, self.target, queries, self.targets[chosen])


def _finite_mean(values: Sequence[float]) -> float | None:
    """The mean, or None where there is none that is a finite number."""
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None


def _check_agreement(spec: PredictorSpec, config: MetaConfig) -> None:
    for name in ("inputs", "hidden_dim", "unit", "inner_steps", "guided", "rate_init", "map_norm"):
        if getattr(spec, name) != getattr(config, name):
            raise ConfigError(
                f"spec and config must agree on {name}, got {getattr(spec, name)!r} and {getattr(config, name)!r}; "
                "make the spec with config.spec(...)"
            )


def _check_tasks(spec: PredictorSpec, train_tasks: Sequence[MetaTask], valid_tasks: Sequence[MetaTask]) -> None:
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
