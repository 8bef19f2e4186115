"""The baselines that need no meta-training, by name, each built for one task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

from dass.baselines.diswot import view
from dass.baselines.minibatch import NUM_IMAGES, Minibatch, draw_minibatch
from dass.baselines.proxies import LOSS_PROXIES, PROXIES, Proxy
from dass.baselines.scorers import (
    ArchScorer,
    DisWOTValue,
    InitialNetworks,
    NetworkScorer,
    ProxyValue,
    ValidAccuracy,
    ViewScorer,
    num_blocks,
    random_value,
)
from dass.baselines.short_kd import ShortKDScorer
from dass.cost import count_macs, count_params
from dass.data.batches import ResidentBatches
from dass.errors import ConfigError, DataError
from dass.explained import TeacherView, images_of
from dass.kd.teacher import Teacher
from dass.records import Recipe
from dass.search.select import Scorer
from dass.seeding import derive_seed
from dass.spaces.space import SearchSpace

SHORT_KD = "short_kd"
Weights = Literal["scratch", "remap"]
ProxyLoss = Literal["ce", "kd"]


@dataclass(frozen=True, eq=False)
class BaselineContext:
    """What baselines may need of a task.

    data: its images; baselines compute on their device. teacher: the trained one, where there is one. recipe: the
    task's KD recipe; its loss, the way it remaps, and all of it for `short_kd`. seed: of everything that is drawn.
    """

    data: ResidentBatches
    space: SearchSpace
    teacher: Teacher | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    num_images: int = NUM_IMAGES
    short_epochs: int = 3

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ConfigError(f"num_images of a minibatch must be >= 2, got {self.num_images}; set num_images")
        if self.short_epochs < 1:
            raise ConfigError(f"short_epochs must be >= 1, got {self.short_epochs}; set short_epochs")

    @property
    def num_classes(self) -> int:
        """Classes of the task."""
        return self.data.task.num_classes

    def trained_teacher(self) -> Teacher:
        """The teacher, checked against the task.

        Raises:
            ConfigError: there is none.
            SpaceError: its weights do not fit its architecture or the task's classes.
        """
        if self.teacher is None:
            raise ConfigError("this baseline needs the task's trained teacher, got None; give BaselineContext.teacher")
        self.teacher.check(self.num_classes)
        return self.teacher

    def minibatch(self, loss: ProxyLoss = "ce") -> Minibatch:
        """The task's minibatch; kd: under the recipe's loss, against the trained teacher."""
        batch = draw_minibatch(self.data, self.num_images, self.seed)
        return batch.distilled(self.trained_teacher(), self.num_classes, self.recipe) if loss == "kd" else batch

    def networks(self, init: Weights = "scratch") -> InitialNetworks:
        """Students with fresh weights, or with those that the recipe remaps from the trained teacher."""
        fresh = InitialNetworks(self.num_classes, self.data.device, self.seed)
        if init == "scratch":
            return fresh
        if self.recipe.init == "scratch":
            raise ConfigError("remapped weights need a copy_paste mode, got recipe.init='scratch'; set recipe.init")
        return replace(fresh, teacher=self.trained_teacher(), init=self.recipe.init)


def _macs(context: BaselineContext) -> Scorer:
    resolution = context.data.task.resolution
    return ArchScorer(partial(count_macs, resolution=resolution, num_classes=context.num_classes))


def _params(context: BaselineContext) -> Scorer:
    return ArchScorer(partial(count_params, num_classes=context.num_classes))


def _depth(context: BaselineContext) -> Scorer:  # noqa: ARG001 - as all others
    return ArchScorer(num_blocks)


def _random(context: BaselineContext) -> Scorer:
    return ArchScorer(partial(random_value, seed=context.seed))


def _proxy(context: BaselineContext, proxy: Proxy, loss: ProxyLoss, init: Weights) -> Scorer:
    return NetworkScorer(context.networks(init), ProxyValue(proxy, context.minibatch(loss)))


def _diswot(context: BaselineContext, init: Weights) -> Scorer:
    """The teacher's weights come about as the students' do: drawn anew, or trained; both are in train mode."""
    batch, networks = context.minibatch(), context.networks(init)
    architecture = context.space.largest if context.teacher is None else context.teacher.student
    teacher = replace(networks, seed=derive_seed("baseline teacher", context.seed)).build(architecture)
    return NetworkScorer(networks, DisWOTValue(view(teacher, batch), batch))


def _remap_accuracy(context: BaselineContext) -> Scorer:
    _require_valid(context)
    return NetworkScorer(context.networks("remap"), ValidAccuracy(context.data))


def _explained(context: BaselineContext) -> Scorer:
    mode = context.networks("remap").init
    return ViewScorer(TeacherView(context.trained_teacher(), images_of(context.data), mode))


def _short_kd(context: BaselineContext) -> Scorer:
    _require_valid(context)
    recipe = replace(context.recipe, epochs=context.short_epochs)
    return ShortKDScorer(context.data, context.trained_teacher(), recipe, context.seed)


def _require_valid(context: BaselineContext) -> None:
    if not context.data.num_images("valid"):
        raise DataError(
            f"an accuracy needs images in the valid part, got none in task {context.data.task.name}; cut the task anew"
        )


def _proxies() -> dict[str, Callable[[BaselineContext], Scorer]]:
    """Every proxy, with those of its variants that differ from it."""
    return {
        name + ("+kd" if loss == "kd" else "") + ("+remap" if init == "remap" else ""): partial(
            _proxy, proxy=proxy, loss=loss, init=init
        )
        for name, proxy in PROXIES.items()
        for loss in get_args(ProxyLoss)
        if loss == "ce" or name in LOSS_PROXIES
        for init in get_args(Weights)
    }


BASELINES: Mapping[str, Callable[[BaselineContext], Scorer]] = MappingProxyType(
    {
        "params": _params,
        "macs": _macs,
        "depth": _depth,
        "random": _random,
        **_proxies(),
        "diswot": partial(_diswot, init="scratch"),
        "diswot+remap": partial(_diswot, init="remap"),
        "remap_accuracy": _remap_accuracy,
        "explained": _explained,
        SHORT_KD: _short_kd,
    }
)
"""How to build each baseline. `+kd`: under the loss of distillation; `+remap`: on remapped weights."""

UNSEEDED = frozenset({"params", "macs", "depth", "synflow+remap", "remap_accuracy", "explained"})
"""Those that draw neither weights nor images, so that every seed gives the same scores."""


def check_recipe(names: Sequence[str], recipe: Recipe, called: str = "recipe") -> None:
    """Raise ConfigError, before anything is built, if one of `names` asks for what the recipe rules out.

    called: what the user calls the recipe.
    """
    rules = (
        ("init", recipe.init == "scratch", ("+remap", "remap_accuracy", "explained"), "a copy_paste mode"),
        ("loss", recipe.loss == "ce", ("+kd",), "kd or kd_paper"),
    )
    for key, is_broken, marks, remedy in rules:
        ruled_out = [name for name in names if is_broken and any(mark in name for mark in marks)]
        if ruled_out:
            raise ConfigError(
                f"{', '.join(ruled_out)} cannot be computed with {called}.{key}={getattr(recipe, key)!r}; set it to {remedy}, "
                "or choose other methods"
            )


def build_baseline(name: str, context: BaselineContext) -> Scorer:
    """The baseline of this name, ready to score students of the task.

    Raises:
        ConfigError: no baseline has this name, or it needs a teacher and a recipe that the context does not have.
        DataError: the task has too few images.
        SpaceError: the teacher does not fit the task.
    """
    if name not in BASELINES:
        nearest = get_close_matches(name, BASELINES, n=1, cutoff=0)[0]
        raise ConfigError(f"a baseline must be one of {', '.join(BASELINES)}, got {name!r}; did you mean {nearest}?")
    return BASELINES[name](context)
