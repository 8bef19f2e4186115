"""MetaD2A's predictor: the task is known by its images alone, and nothing adapts (Lee et al., 2021; section 6.2).

A Set Transformer makes a prototype of each class of its images' features, a second one a vector of all prototypes; with
the embedded architecture it goes through one hidden tanh layer.

Differs: the graph encoder of the architecture is DaSS's linear one, as our space has no graphs; targets have the mean 0
and the standard deviation 1 over the training tasks without a further division by 100; the loss is the mean of squares, not
their sum; the learning rate stays, as the best evaluation is kept anyway, by Spearman and not by Pearson; a task is known
by one draw of its images where the original averages ten predictions; the features are those of any frozen network
(`dass.data.image_features`).

Shape legend: n students, D length of the architecture vector, c classes, m images of each, F features of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Unpack

import torch
from torch import nn

from dass.baselines.set_transformer import SetPool, pool_set
from dass.meta.adapt import Example, InnerLoop, Params, outer_backward
from dass.meta.episodes import MetaTask, Support, checked_images, draw_episode
from dass.meta.files import match_spec, read_method, write_method
from dass.meta.layers import apply_linear, initialise, linear
from dass.meta.method import MadeForImages, check_agreement, check_lr, check_setting
from dass.records import Init
from dass.seeding import generator
from dass.threads import Each

METHOD = "meta_d2a"

_MATCHED = ("space", "resolution", "encoder")


@dataclass(frozen=True, kw_only=True)
class MetaD2ASpec:
    """What a predictor is made for; see `MethodSpec`. It looks at no maps, so noise and remapping are only noted.

    encoder, num_features: which frozen network made its image features, and F. images_per_class: m. set_dim: width of the
    set encoders, with `num_heads` heads. hidden_dim: width of the architecture embedding and of the hidden layer.
    """

    space: str
    resolution: int
    num_channels: int
    arch_dim: int
    noise_sha: str
    encoder: str
    num_features: int
    images_per_class: int = 20
    set_dim: int = 56
    num_heads: int = 4
    hidden_dim: int = 64
    remap_mode: Init = "copy_paste_first"
    recipe: str = ""

    def __post_init__(self) -> None:
        for name in (
            "resolution",
            "arch_dim",
            "num_features",
            "images_per_class",
            "set_dim",
            "num_heads",
            "hidden_dim",
        ):
            check_setting("meta_d2a", name, getattr(self, name), ">= 1", is_legal=getattr(self, name) >= 1)
        rule = f"a multiple of the {self.num_heads} heads"
        check_setting("meta_d2a", "set_dim", self.set_dim, rule, is_legal=self.set_dim % self.num_heads == 0)


class SetInputs(NamedTuple):
    """What the network sees of n students of a task: images (c, m, F), arch (n, D)."""

    images: torch.Tensor
    arch: torch.Tensor


class SetPredictor(nn.Module):
    """The network; weights are drawn with a generator of `seed`, on the CPU."""

    def __init__(self, spec: MetaD2ASpec, seed: int) -> None:
        super().__init__()
        self.spec = spec
        self.intra = SetPool(spec.num_features, spec.set_dim)
        self.inter = SetPool(spec.set_dim, spec.set_dim)
        self.arch_encoder = linear(spec.arch_dim, spec.hidden_dim)
        self.fusion = linear(spec.hidden_dim + spec.set_dim, spec.hidden_dim)
        self.head = linear(spec.hidden_dim, 1)
        rng = generator(METHOD, seed)
        initialise(self, rng)
        self.intra.draw_seed(rng)
        self.inter.draw_seed(rng)

    def encode_set(self, params: Params, images: torch.Tensor) -> torch.Tensor:
        """(1, set_dim): the vector of a task's images (c, m, F); their order in a class, and the classes', is no matter."""
        prototypes = pool_set(params, "intra", images, self.spec.num_heads)
        return pool_set(params, "inter", prototypes[None], self.spec.num_heads)

    def predict(self, params: Params, task: torch.Tensor, arch: torch.Tensor) -> torch.Tensor:
        """(n,) standardised accuracies of arch (n, D) on the task of this vector (1, set_dim)."""
        embedded = apply_linear(params, "arch_encoder", arch)
        hidden = torch.tanh(apply_linear(params, "fusion", torch.cat([embedded, task.expand(len(arch), -1)], dim=1)))
        return apply_linear(params, "head", hidden).squeeze(1)

    def call(self, params: Params, inputs: SetInputs) -> torch.Tensor:
        """(n,) standardised accuracies, with `params` in the place of the network's own."""
        return self.predict(params, self.encode_set(params, inputs.images), inputs.arch)


@dataclass(frozen=True, eq=False)
class AdaptedMetaD2A:
    """The predictor with a task's set vector (1, set_dim)."""

    method: "MetaD2A"
    params: Params
    task: torch.Tensor
    needs_maps: bool = False
    needs_explained: bool = False
    num_skipped: int = 0

    def score(self, maps: torch.Tensor, arch: torch.Tensor, explained: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Predicted accuracy after distillation, percent, float32 (n,), of arch (n, D); maps are not looked at."""
        with torch.no_grad():
            value = self.method.model.predict(self.params, self.task, arch)
        return value * self.method.std_pct + self.method.mean_pct

    def to(self, device: torch.device) -> "AdaptedMetaD2A":
        """The same on this device."""
        params = {name: value.to(device) for name, value in self.params.items()}
        return AdaptedMetaD2A(self.method, params, self.task.to(device))


@dataclass(frozen=True, eq=False)
class MetaD2A:
    """What meta-training gives: the network, and mean and standard deviation of the accuracies it learned from."""

    model: SetPredictor
    mean_pct: float
    std_pct: float
    is_selected: bool = True
    num_support: int = 0
    needs_explained: bool = False

    @property
    def spec(self) -> MetaD2ASpec:
        """What it was made for."""
        return self.model.spec

    def adapt(self, support: Support) -> AdaptedMetaD2A:
        """Look at the task's images, the first `images_per_class` of each class; on the device of the teacher's map.

        Raises:
            PredictorMismatchError: there are no images, fewer, or other features than it learned from.
        """
        device, spec = support.teacher_map.device, self.spec
        images = checked_images(support.images, spec.encoder, spec.num_features, spec.images_per_class)
        params = {name: value.detach().to(device) for name, value in self.model.named_parameters()}
        with torch.no_grad():
            task = self.model.encode_set(params, images[:, : spec.images_per_class].to(device))
        return AdaptedMetaD2A(self, params, task)

    def save(self) -> bytes:
        """Its file; `load_meta_d2a` reads it."""
        tensors = {f"phi.{name}": value for name, value in self.model.named_parameters()}
        scale = torch.tensor([self.mean_pct, self.std_pct], dtype=torch.float64)
        return write_method(METHOD, self.spec, {**tensors, "scale": scale}, is_selected=self.is_selected)


def load_meta_d2a(data: bytes, *, expect: MetaD2ASpec | None = None) -> MetaD2A:
    """The predictor of a file that `MetaD2A.save` made.

    expect: its space, resolution and encoder must be the file's.

    Raises:
        PredictorMismatchError: it was made for something else than expected, or is of another method.
        SchemaTooNewError: a newer version of this package wrote it.
        StoreError: the bytes are not a complete predictor.
    """
    with read_method(data, METHOD, MetaD2ASpec) as file:
        spec = file.spec
        least = spec.set_dim * (spec.num_features + spec.set_dim) + spec.hidden_dim * (spec.hidden_dim + spec.arch_dim)
        if least > file.num_weights:
            raise TypeError("fewer weights than its spec asks for")  # before a network of any size is made
        match_spec(spec, expect, _MATCHED)
        model = SetPredictor(spec, seed=0)
        model.load_state_dict({name: file.tensors[f"phi.{name}"] for name, _ in model.named_parameters()})
        if (scale := file.tensors["scale"]).shape != (2,):
            raise TypeError(f"scale of shape {tuple(scale.shape)}")
    return MetaD2A(model, scale[0].item(), scale[1].item(), is_selected=file.is_selected)


@dataclass(frozen=True)
class MetaD2AConfig:
    """How MetaD2A is trained.

    By default an episode is the original's batch of 32, 4 students of each of 8 tasks, and 6000 of them are its 400 passes
    over 8 tasks of 60 students.
    """

    episodes: int = field(default=6000, metadata={"help": "episodes, one Adam step each"})
    queries: int = field(default=4, metadata={"help": "students per task and episode"})
    tasks_per_episode: int = field(default=8, metadata={"help": "tasks per episode; all of them if there are no more"})
    images_per_class: int = field(default=20, metadata={"help": "images of each class that it looks at"})
    set_dim: int = field(default=56, metadata={"help": "width of the set encoders"})
    num_heads: int = field(default=4, metadata={"help": "attention heads"})
    hidden_dim: int = field(default=64, metadata={"help": "width of the architecture embedding and the hidden layer"})
    lr: float = field(default=1e-4, metadata={"help": "Adam's learning rate"})
    eval_every: int = field(default=100, metadata={"help": "episodes between evaluations; the last one has one too"})
    seed: int = field(default=2, metadata={"help": "seed of the first weights and of the episodes"})

    def __post_init__(self) -> None:
        for name in ("episodes", "queries", "tasks_per_episode", "eval_every"):
            check_setting("meta_d2a", name, getattr(self, name), ">= 1", is_legal=getattr(self, name) >= 1)
        check_lr("meta_d2a", self.lr)
        self.spec(space="any", resolution=8, num_channels=1, arch_dim=1, noise_sha="", encoder="", num_features=1)

    def spec(self, **made_for: Unpack[MadeForImages]) -> MetaD2ASpec:
        """The spec of a predictor trained this way; the arguments say what it learns from."""
        return MetaD2ASpec(
            **made_for,
            images_per_class=self.images_per_class,
            set_dim=self.set_dim,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_dim,
        )

    def check(self, spec: MetaD2ASpec, tasks: Sequence[MetaTask]) -> None:
        """Raise ConfigError unless spec and config agree, PredictorMismatchError unless every task has such images."""
        check_agreement(spec, self, ("images_per_class", "set_dim", "num_heads", "hidden_dim"))
        for task in tasks:
            checked_images(task.images, spec.encoder, spec.num_features, spec.images_per_class)

    def learner(self, spec: MetaD2ASpec, tasks: Sequence[MetaTask]) -> "MetaD2ALearner":
        """The predictor at the beginning of its training."""
        return MetaD2ALearner(spec, self, tasks)


class MetaD2ALearner:
    """The network under training: the mean squared error of an episode's students, without any inner step.

    Each episode looks at other images of each class where a task has more than it looks at.
    """

    def __init__(self, spec: MetaD2ASpec, config: MetaD2AConfig, tasks: Sequence[MetaTask]) -> None:
        self._config = config
        self._model = SetPredictor(spec, config.seed).to(tasks[0].maps.device)
        self._phi = dict(self._model.named_parameters())
        self._images = [checked_images(task.images, spec.encoder, spec.num_features) for task in tasks]
        targets = torch.cat([task.targets_pct for task in tasks]).double()
        self._mean_pct, self._std_pct = targets.mean().item(), targets.std(correction=0).item() or 1.0
        with torch.inference_mode(mode=False):
            self._arch = [task.arch.clone() for task in tasks]
            self._targets = [(task.targets_pct - self._mean_pct) / self._std_pct for task in tasks]

    def learned(self) -> dict[str, torch.Tensor]:
        """The network's weights."""
        return {f"phi.{name}": value for name, value in self._phi.items()}

    def backward(self, number: int, each: Each) -> tuple[float, int]:
        """The mean over tasks of the mean squared error of the episode; see `MethodLearner`."""
        config = self._config
        sizes = [len(arch) for arch in self._arch]
        episode = draw_episode(
            sizes, seed=config.seed, number=number, num_tasks=config.tasks_per_episode, num_queries=config.queries
        )
        examples = [
            partial(self._example, number, task, queries)
            for task, queries in zip(episode.tasks, episode.queries, strict=True)
        ]
        return outer_backward(self._model.call, self._phi, {}, examples, InnerLoop(guided=False), each)

    def present(self) -> MetaD2A:
        """The predictor as it stands."""
        return MetaD2A(self._model, self._mean_pct, self._std_pct)

    def trained(self, tensors: Mapping[str, torch.Tensor], *, is_selected: bool) -> MetaD2A:
        """The predictor of these weights."""
        model = SetPredictor(self._model.spec, seed=0)
        model.load_state_dict({name: tensors[f"phi.{name}"] for name in self._phi})
        return MetaD2A(model, self._mean_pct, self._std_pct, is_selected=is_selected)

    def _example(self, number: int, task: int, queries: torch.Tensor) -> Example:
        arch, targets, images = self._arch[task], self._targets[task], self._images[task]
        rng = generator("images", self._config.seed, number, task)
        order = torch.rand(images.shape[:2], generator=rng).argsort(dim=1)[:, : self._config.images_per_class]
        seen = images.gather(1, order[..., None].expand(-1, -1, images.shape[2]).to(images.device))
        queries = queries.to(arch.device)
        return Example(None, targets.new_empty(0), SetInputs(seen, arch[queries]), targets[queries])
