"""What a meta-learned method is: the contract between `MetaTraining`, the methods, and who ranks students with them.

    config.learner(spec, tasks)      under training: a `MethodLearner`
    training.best()                  trained: a `MetaMethod`, which `save` writes
    method.adapt(support)            it has looked at a task: an `AdaptedMethod`, which ranks the task's students

The methods: the DaSS predictor in all its variants (`dass.predictor`, `dass.meta.guided`), MetaD2A and TANS
(`dass.baselines`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from typing import Any, ClassVar, NotRequired, Protocol, TypedDict, TypeVar

import torch

from dass.errors import ConfigError
from dass.json_text import parse_json
from dass.meta.episodes import MetaTask, Support
from dass.records import Init, Recipe
from dass.threads import Each


class MethodSpec(Protocol):
    """What a method is made for, a dataclass that travels in its file: maps and encodings of others mean nothing to it.

    num_channels: C of the maps. arch_dim: D, the length of an architecture vector. recipe: canonical JSON of the recipe
    that the accuracies it has learned from were distilled under; empty where that is unknown.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def space(self) -> str:
        """The name of the search space."""

    @property
    def resolution(self) -> int:
        """Pixels."""

    @property
    def num_channels(self) -> int:
        """See above."""

    @property
    def arch_dim(self) -> int:
        """See above."""

    @property
    def noise_sha(self) -> str:
        """SHA-256 of the noise image that maps are made from."""

    @property
    def remap_mode(self) -> Init:
        """How students are remapped for their maps."""

    @property
    def recipe(self) -> str:
        """See above."""


class AdaptedMethod(Protocol):
    """A method that has looked at a task; immutable, so several threads may ask it at once."""

    @property
    def needs_maps(self) -> bool:
        """Whether `score` looks at the maps; if not, whatever is in their place will do."""

    @property
    def needs_explained(self) -> bool:
        """Whether `score` asks what the students see of what the teacher sees (`dass.explained`)."""

    @property
    def num_skipped(self) -> int:
        """Steps of the adaptation that were left out, for a loss that was not finite."""

    def score(self, maps: torch.Tensor, arch: torch.Tensor, explained: torch.Tensor | None = None) -> torch.Tensor:
        """Predicted accuracy after distillation, percent, float32 (n,), of maps (n, C, h, w), arch (n, D), explained (n,)."""

    def to(self, device: torch.device) -> "AdaptedMethod":
        """The same on this device."""


class MetaMethod(Protocol):
    """A meta-trained method."""

    @property
    def spec(self) -> MethodSpec:
        """What it was made for."""

    @property
    def num_support(self) -> int:
        """Measured students that `adapt` asks for; they are no evidence of how well it ranks. 0: the teacher alone."""

    @property
    def needs_explained(self) -> bool:
        """Whether it asks what students see of what the teacher sees, so that it needs images of the task."""

    @property
    def is_selected(self) -> bool:
        """Whether meta-validation chose it; else it is merely the last of its training."""

    def adapt(self, support: Support) -> AdaptedMethod:
        """Look at a task, on the device of the teacher's map."""

    def save(self) -> bytes:
        """Its file."""


SpecT = TypeVar("SpecT", bound=MethodSpec, contravariant=True)
MethodT = TypeVar("MethodT", bound=MetaMethod, covariant=True)


class MethodLearner(Protocol[MethodT]):
    """A method under training."""

    def learned(self) -> Mapping[str, torch.Tensor]:
        """What training moves, by the names of its checkpoint: the live tensors, in an order that stays."""

    def backward(self, number: int, each: Each) -> tuple[float, int]:
        """Add the gradient of episode `number`'s loss to what is learned; the loss, and the inner steps left out.

        Depends on the learned tensors, the seed and the number alone. each: works on tasks, perhaps several at a time.
        """

    def present(self) -> MethodT:
        """The method as it stands; shares the live tensors."""

    def trained(self, tensors: Mapping[str, torch.Tensor], *, is_selected: bool) -> MethodT:
        """The method with these tensors, named as in `learned`; a copy on the CPU."""


class MadeFor(TypedDict):
    """What the spec of any method names; see `MethodSpec`."""

    space: str
    resolution: int
    num_channels: int
    arch_dim: int
    noise_sha: str
    remap_mode: NotRequired[Init]
    recipe: NotRequired[str]


class MadeForImages(MadeFor):
    """The same of a method that looks at images: features of encoder `encoder`, `num_features` of an image."""

    encoder: str
    num_features: int


class MethodConfig(Protocol[SpecT, MethodT]):
    """How a method is trained, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def episodes(self) -> int:
        """Episodes, one step of Adam each."""

    @property
    def eval_every(self) -> int:
        """Episodes between two evaluations on meta-validation."""

    @property
    def lr(self) -> float:
        """Adam's learning rate."""

    def check(self, spec: SpecT, tasks: Sequence[MetaTask]) -> None:
        """Raise ConfigError or DataError unless spec and config agree and every task has what the method looks at."""

    def learner(self, spec: SpecT, tasks: Sequence[MetaTask]) -> MethodLearner[MethodT]:
        """The method at the beginning of its training, on the device of the tasks that teach it."""


def epochs_of(spec: MethodSpec) -> int | None:
    """After how many epochs of distillation students have the accuracies that it foretells; None where that is unknown.

    Raises:
        ConfigError: what the spec calls a recipe is none.
    """
    if not spec.recipe:
        return None
    try:
        return Recipe(**parse_json(spec.recipe)).epochs
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"a predictor's recipe must be the canonical JSON of one, got {spec.recipe:.80}; run meta-training again"
        ) from error


def check_setting(group: str, name: str, value: object, rule: str, *, is_legal: bool) -> None:
    """Raise ConfigError, which names `group.name`, unless the value is legal."""
    if not is_legal:
        raise ConfigError(f"{group}.{name} must be {rule}, got {value!r}; set {group}.{name}")


def check_agreement(spec: MethodSpec, config: object, names: Iterable[str]) -> None:
    """Raise ConfigError unless spec and config agree on these fields, as those of `config.spec(...)` do."""
    for name in names:
        if getattr(spec, name) != getattr(config, name):
            raise ConfigError(
                f"spec and config must agree on {name}, got {getattr(spec, name)!r} and {getattr(config, name)!r}; "
                "make the spec with config.spec(...)"
            )


def check_lr(group: str, lr: float) -> None:
    """Raise ConfigError unless it is a learning rate."""
    check_setting(group, "lr", lr, "a finite number > 0", is_legal=lr > 0 and math.isfinite(lr))
