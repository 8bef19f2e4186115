"""The DaSS predictor under training, in all its variants: guided or not, any inputs, MAML and Meta-SGD among them.

Per episode and task: adapt to the teacher (or to a few measured students), predict the queries, mean squared error; the
mean over tasks moves the weights phi and the inner rates alpha alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Unpack, get_args

import torch

from dass.errors import DataError
from dass.explained import VIEW
from dass.meta.adapt import Example, InnerLoop, Order, OuterLoss, outer_backward
from dass.meta.episodes import MetaTask, draw_episode
from dass.meta.method import MadeFor, check_agreement, check_lr, check_setting
from dass.predictor import (
    Encoding,
    Inputs,
    InputSet,
    MapNorm,
    MetaPredictor,
    Predictor,
    PredictorSpec,
    Prepared,
    to_examples,
)
from dass.threads import Each
from dass.units import Unit, to_unit
from dass.windows import to_rows, windows

_AGREED = (
    "inputs", "encoding", "hidden_dim", "unit", "inner_steps", "guided", "rate_init", "map_norm", "support_students",
)  # fmt: skip


@dataclass(frozen=True)
class MetaConfig:
    """How the predictor is meta-trained. The defaults are those of the released code (algorithms: section 13).

    Inputs A alone make it Meta-SGD, and MAML where the rates are not learned (section 6.1).
    """

    episodes: int = field(default=1000, metadata={"help": "episodes, one Adam step each"})
    queries: int = field(default=50, metadata={"help": "students predicted per task and episode; fewer if fewer exist"})
    tasks_per_episode: int = field(default=8, metadata={"help": "tasks per episode; all of them if there are no more"})
    lr: float = field(default=5e-4, metadata={"help": "Adam's learning rate, for weights and inner rates"})
    rate_init: float = field(default=0.005, metadata={"help": "inner learning rate that every weight begins with"})
    inner_steps: int = field(default=1, metadata={"help": "gradient steps on the teacher"})
    order: Order = field(default="second", metadata={"help": "second: differentiate through the inner steps"})
    loss: OuterLoss = field(
        default="squared",
        metadata={
            "help": "of the queries: squared error, or correlation: 1 less theirs, and a little of the squared error"
        },
    )
    guided: bool = field(default=True, metadata={"help": "adapt to the teacher; false leaves the inner steps out"})
    inputs: InputSet = field(
        default="SAT",
        metadata={
            "help": "what is seen: student map, architecture, teacher map; R: how near the two maps are; E: how much "
            "of the teacher's features in images of the task the student's explain"
        },
    )
    encoding: Encoding = field(
        default="slots",
        metadata={
            "help": "architecture as slots: one-hot by block; stages: narrowest and mean width and depth of each; "
            "summary: and its MACs and weights"
        },
    )
    hidden_dim: int = field(default=64, metadata={"help": "width of the architecture embedding and of the fusion"})
    map_norm: MapNorm = field(default="none", metadata={"help": "layer normalises each map as a whole"})
    eval_every: int = field(default=20, metadata={"help": "episodes between evaluations; the last one has one too"})
    seed: int = field(default=2, metadata={"help": "seed of the first weights and of the episodes"})
    unit: Unit = field(
        default="percent",
        metadata={
            "help": "percent; task_free: (percent - 50) / 10; fraction: percent / 100; teacher: against the teacher, in "
            "tenths of its accuracy"
        },
    )
    learn_rates: bool = field(default=True, metadata={"help": "learn the inner rates; false keeps them as they begin"})
    support_students: int = field(
        default=0, metadata={"help": "measured students of a task to adapt to; 0: to its teacher alone"}
    )

    def __post_init__(self) -> None:
        for name in ("episodes", "queries", "tasks_per_episode", "inner_steps", "hidden_dim", "eval_every"):
            check_setting("meta", name, getattr(self, name), ">= 1", is_legal=getattr(self, name) >= 1)
        check_lr("meta", self.lr)
        check_setting("meta", "order", self.order, "second or first", is_legal=self.order in ("second", "first"))
        losses = get_args(OuterLoss)
        check_setting("meta", "loss", self.loss, " or ".join(losses), is_legal=self.loss in losses)
        self.spec(space="any", resolution=8, num_channels=1, arch_dim=1, noise_sha="")

    def spec(self, **made_for: Unpack[MadeFor]) -> PredictorSpec:
        """The spec of a predictor trained this way; the arguments say what its maps and encodings are made from."""
        return PredictorSpec(
            **made_for,
            inputs=self.inputs,
            view=VIEW if "E" in self.inputs else 0,
            encoding=self.encoding,
            hidden_dim=self.hidden_dim,
            unit=self.unit,
            inner_steps=self.inner_steps,
            guided=self.guided,
            rate_init=self.rate_init,
            map_norm=self.map_norm,
            support_students=self.support_students,
        )

    def check(self, spec: PredictorSpec, tasks: Sequence[MetaTask]) -> None:
        """Raise ConfigError unless spec and config agree, DataError where too few students are left to rank."""
        check_agreement(spec, self, _AGREED)
        for task in tasks:
            if task.num_students <= self.support_students:
                raise DataError(
                    f"meta task {task.name!r} must have more than {self.support_students} students, those to adapt to, "
                    f"got {task.num_students}; collect more records or lower meta.support_students"
                )

    def learner(self, spec: PredictorSpec, tasks: Sequence[MetaTask]) -> "GuidedLearner":
        """The predictor at the beginning of its training."""
        return GuidedLearner(spec, self, tasks)


class GuidedLearner:
    """The weights phi and the inner rates alpha, on the device of the tasks; weights are drawn on the CPU."""

    def __init__(self, spec: PredictorSpec, config: MetaConfig, tasks: Sequence[MetaTask]) -> None:
        self._config = config
        self._device = tasks[0].maps.device
        self._model = Predictor(spec, config.seed).to(self._device)
        self._phi = dict(self._model.named_parameters())
        self._rates = {
            name: torch.full_like(value, config.rate_init, requires_grad=config.learn_rates)
            for name, value in self._phi.items()
        }
        self._loop = InnerLoop(config.inner_steps, config.order, config.guided)
        self._lessons = [_Lesson.of(task, self._model) for task in tasks]

    def learned(self) -> dict[str, torch.Tensor]:
        """Weights and, where they are learned, rates."""
        learned = {f"phi.{name}": value for name, value in self._phi.items()}
        return learned | {f"rate.{name}": value for name, value in self._rates.items() if value.requires_grad}

    def backward(self, number: int, each: Each) -> tuple[float, int]:
        """The outer loss of the episode, and the inner steps left out; see `MethodLearner`."""
        config = self._config
        episode = draw_episode(
            [len(lesson.arch) for lesson in self._lessons],
            seed=config.seed,
            number=number,
            num_tasks=config.tasks_per_episode,
            num_queries=config.queries,
            num_support=config.support_students,
        )
        examples = [
            partial(self._lessons[task].example, queries.to(self._device), support.to(self._device))
            for task, queries, support in zip(episode.tasks, episode.queries, episode.support, strict=True)
        ]
        return outer_backward(self._model.call, self._phi, self._rates, examples, self._loop, each, config.loss)

    def present(self) -> MetaPredictor:
        """The predictor as it stands."""
        return MetaPredictor(self._model, self._rates)

    def trained(self, tensors: Mapping[str, torch.Tensor], *, is_selected: bool) -> MetaPredictor:
        """The predictor of these weights and rates."""
        model = Predictor(self._model.spec, seed=0)
        model.load_state_dict({name: tensors[f"phi.{name}"] for name in self._phi})
        rates = {name: tensors.get(f"rate.{name}", rate).detach().cpu().clone() for name, rate in self._rates.items()}
        return MetaPredictor(model, rates, is_selected=is_selected)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """A task as episodes read it: the maps of its students in rows (`to_rows`), accuracies in the predictor's unit.

    arch, relations, explained: as in `Prepared`. teacher: the teacher as a student of itself, with its accuracy. Rows
    that are not read are empty.
    """

    rows: torch.Tensor
    sides: tuple[int, int]
    arch: torch.Tensor
    relations: torch.Tensor
    explained: torch.Tensor
    targets: torch.Tensor
    teacher: Prepared
    target: torch.Tensor

    @classmethod
    def of(cls, task: MetaTask, model: Predictor) -> "_Lesson":
        with torch.inference_mode(mode=False), torch.no_grad():  # maps of inference mode take no part in autograd
            teacher, unit = to_examples(task.support(), 0), model.spec.unit
            return cls(
                rows=to_rows(model.normalise(task.maps)) if "S" in model.spec.inputs else task.maps.new_empty(0),
                sides=(task.maps.shape[2], task.maps.shape[3]),
                arch=model.encode(task.arch.clone()),
                relations=model.relate(task.maps, task.teacher_map),
                explained=model.compare(task.explained, task.arch),
                targets=to_unit(task.targets_pct, unit, task.teacher_accuracy_pct),
                teacher=model.prepare(Inputs(teacher.maps, teacher.arch, teacher.maps[0], teacher.explained)),
                target=to_unit(teacher.targets_pct, unit, task.teacher_accuracy_pct),
            )

    def example(self, queries: torch.Tensor, support: torch.Tensor) -> Example:
        """These students, int64 (n_q,), as queries; as support these, int64 (k,), or the teacher where k is 0."""
        if len(support):
            return Example(self.read(support), self.targets[support], self.read(queries), self.targets[queries])
        return Example(self.teacher, self.target, self.read(queries), self.targets[queries])

    def read(self, chosen: torch.Tensor) -> Prepared:
        """These students as the network reads them."""
        read = windows(self.rows, *self.sides, chosen) if len(self.rows) else self.rows
        return Prepared(read, self.arch[chosen], self.teacher.teacher, self.relations[chosen], self.explained[chosen])
