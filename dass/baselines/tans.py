"""TANS: datasets and students in one space of vectors, and a head that tells the accuracy (Jeong et al., 2021; 6.3).

A student is near the dataset that it was distilled on (contrastive loss), and the head reads both vectors. Candidates are
ranked by the head. As it is one linear layer and a sigmoid, a task's images move all its students alike: within a task it is
the student's own vector that ranks, and the images only shape that in training.

Differs: the functional part of a student is its pooled noise map, remapped from the task's teacher, as a student that nobody
has trained has no output; the features are those of any frozen network (`dass.data.image_features`), all stored images at
each step.

Shape legend: n students, D length of the architecture vector, (C, h, w) maps, c classes, m images of each, F features of
an image, E width of the vectors, t tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import nn

from dass.meta.episodes import MetaTask, Support, checked_images, draw_episode
from dass.meta.files import match_spec, read_method, write_method
from dass.meta.layers import initialise, linear
from dass.meta.method import MadeForImages, check_agreement, check_lr, check_setting
from dass.records import Init
from dass.seeding import generator
from dass.threads import Each

METHOD = "tans"

_MATCHED = ("space", "resolution", "noise_sha", "remap_mode", "encoder")


@dataclass(frozen=True, kw_only=True)
class TansSpec:
    """What a TANS predictor is made for; see `MethodSpec`.

    encoder, num_features: which frozen network made its image features, and F. embed_dim: E.
    """

    space: str
    resolution: int
    num_channels: int
    arch_dim: int
    noise_sha: str
    encoder: str
    num_features: int
    embed_dim: int = 128
    remap_mode: Init = "copy_paste_first"
    recipe: str = ""

    def __post_init__(self) -> None:
        for name in ("resolution", "num_channels", "arch_dim", "num_features", "embed_dim"):
            check_setting("tans", name, getattr(self, name), ">= 1", is_legal=getattr(self, name) >= 1)


def student_features(arch: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """(n, D + C) of length 1: the topology, arch (n, D), and the function, maps (n, C, h, w) averaged over places."""
    return F.normalize(torch.cat([arch, maps.mean(dim=(2, 3))], dim=1), dim=1)


def contrastive_loss(scores: torch.Tensor, margin: float, num_negatives: int | None = None) -> torch.Tensor:
    """The hinge loss of scores (t, t), model by dataset, whose diagonal should be the highest of its row and column.

    Per column and per row the `num_negatives` highest negatives (None: t) add max(0, margin + negative - positive). The
    diagonal is 0 among the negatives and not left out, as in the released code: a candidate of score 0 besides.
    """
    positives, num = scores.diagonal(), num_negatives or len(scores)
    negatives = scores - torch.diag(positives)
    of_columns = F.relu(margin + negatives.topk(num, dim=0).values - positives[None, :]).sum()
    of_rows = F.relu(margin + negatives.topk(num, dim=1).values - positives[:, None]).sum()
    return of_columns + of_rows


class TansNetwork(nn.Module):
    """Two encoders and the performance head; weights are drawn with a generator of `seed`, on the CPU."""

    def __init__(self, spec: TansSpec, seed: int) -> None:
        super().__init__()
        self.spec = spec
        self.query_encoder = linear(spec.num_features, spec.embed_dim)
        self.model_encoder = linear(spec.arch_dim + spec.num_channels, spec.embed_dim)
        self.head = linear(2 * spec.embed_dim, 1)
        initialise(self, generator(METHOD, seed))

    def encode_images(self, mean_features: torch.Tensor) -> torch.Tensor:
        """(t, E) of length 1, of the mean of each dataset's image features (t, F): a linear layer commutes with it."""
        return F.normalize(self.query_encoder(mean_features), dim=1)

    def encode_students(self, features: torch.Tensor) -> torch.Tensor:
        """(n, E) of length 1, of `student_features` (n, D + C)."""
        return F.normalize(self.model_encoder(features), dim=1)

    def predict(self, queries: torch.Tensor, models: torch.Tensor) -> torch.Tensor:
        """(n,) accuracies, 0..1, of datasets (n, E) or (1, E) and students (n, E)."""
        pair = torch.cat([queries.expand(len(models), -1), models], dim=1)
        return torch.sigmoid(self.head(pair)).squeeze(1)


@dataclass(frozen=True, eq=False)
class AdaptedTans:
    """The network on the task's device, with the vector (1, E) of its images."""

    network: TansNetwork
    query: torch.Tensor
    needs_maps: bool = True
    needs_explained: bool = False
    num_skipped: int = 0

    def score(self, maps: torch.Tensor, arch: torch.Tensor, explained: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Predicted accuracy after distillation, percent, float32 (n,), of maps (n, C, h, w) and arch (n, D)."""
        with torch.no_grad():
            students = self.network.encode_students(student_features(arch, maps))
            return 100 * self.network.predict(self.query, students)

    def to(self, device: torch.device) -> "AdaptedTans":
        """The same on this device."""
        return AdaptedTans(_copy(self.network).to(device), self.query.to(device))


@dataclass(frozen=True, eq=False)
class Tans:
    """What meta-training gives."""

    network: TansNetwork
    is_selected: bool = True
    num_support: int = 0
    needs_explained: bool = False

    @property
    def spec(self) -> TansSpec:
        """What it was made for."""
        return self.network.spec

    def adapt(self, support: Support) -> AdaptedTans:
        """Look at the task's images; on the device of the teacher's map.

        Raises:
            PredictorMismatchError: there are no images, or other features than it learned from.
        """
        device = support.teacher_map.device
        images = checked_images(support.images, self.spec.encoder, self.spec.num_features)
        network = _copy(self.network).to(device)
        with torch.no_grad():
            return AdaptedTans(network, network.encode_images(_mean(images).to(device)))

    def save(self) -> bytes:
        """Its file; `load_tans` reads it."""
        tensors = {f"phi.{name}": value for name, value in self.network.named_parameters()}
        return write_method(METHOD, self.spec, tensors, is_selected=self.is_selected)


def load_tans(data: bytes, *, expect: TansSpec | None = None) -> Tans:
    """The predictor of a file that `Tans.save` made.

    expect: its space, resolution, noise_sha, remap_mode and encoder must be the file's.

    Raises:
        PredictorMismatchError: it was made for something else than expected, or is of another method.
        SchemaTooNewError: a newer version of this package wrote it.
        StoreError: the bytes are not a complete predictor.
    """
    with read_method(data, METHOD, TansSpec) as file:
        spec = file.spec
        if spec.embed_dim * (spec.num_features + spec.arch_dim + spec.num_channels) > file.num_weights:
            raise TypeError("fewer weights than its spec asks for")  # before a network of any size is made
        match_spec(spec, expect, _MATCHED)
        network = TansNetwork(spec, seed=0)
        network.load_state_dict({name: file.tensors[f"phi.{name}"] for name, _ in network.named_parameters()})
    return Tans(network, is_selected=file.is_selected)


@dataclass(frozen=True)
class TansConfig:
    """How TANS is trained: every episode takes one student at random of every task."""

    episodes: int = field(default=10_000, metadata={"help": "episodes, one Adam step each"})
    margin: float = field(default=0.2, metadata={"help": "by how much a student's own dataset should be nearer"})
    embed_dim: int = field(default=128, metadata={"help": "width of the vectors of datasets and students"})
    lr: float = field(default=1e-2, metadata={"help": "Adam's learning rate"})
    eval_every: int = field(default=100, metadata={"help": "episodes between evaluations; the last one has one too"})
    seed: int = field(default=2, metadata={"help": "seed of the first weights and of the episodes"})

    def __post_init__(self) -> None:
        for name in ("episodes", "embed_dim", "eval_every"):
            check_setting("tans", name, getattr(self, name), ">= 1", is_legal=getattr(self, name) >= 1)
        check_setting("tans", "margin", self.margin, ">= 0", is_legal=self.margin >= 0)
        check_lr("tans", self.lr)

    def spec(self, **made_for: Unpack[MadeForImages]) -> TansSpec:
        """The spec of a predictor trained this way; the arguments say what it learns from."""
        return TansSpec(
            **made_for,
            embed_dim=self.embed_dim,
        )

    def check(self, spec: TansSpec, tasks: Sequence[MetaTask]) -> None:
        """Raise ConfigError unless spec and config agree, PredictorMismatchError unless every task has such images."""
        check_agreement(spec, self, ("embed_dim",))
        for task in tasks:
            checked_images(task.images, spec.encoder, spec.num_features)

    def learner(self, spec: TansSpec, tasks: Sequence[MetaTask]) -> "TansLearner":
        """The networks at the beginning of their training."""
        return TansLearner(spec, self, tasks)


class TansLearner:
    """The networks under training: the contrastive loss of an episode's students and datasets, plus the head's error."""

    def __init__(self, spec: TansSpec, config: TansConfig, tasks: Sequence[MetaTask]) -> None:
        self._config = config
        self._network = TansNetwork(spec, config.seed).to(tasks[0].maps.device)
        images = [_mean(checked_images(task.images, spec.encoder, spec.num_features)) for task in tasks]
        self._images = torch.cat(images)
        with torch.inference_mode(mode=False):
            self._students = [student_features(task.arch.clone(), task.maps.clone()) for task in tasks]
            self._targets = [task.targets_pct / 100 for task in tasks]

    def learned(self) -> dict[str, torch.Tensor]:
        """The networks' weights."""
        return {f"phi.{name}": value for name, value in self._network.named_parameters()}

    def backward(self, number: int, each: Each) -> tuple[float, int]:  # noqa: ARG002 - too little work to share out
        """The loss of one student of every task; see `MethodLearner`."""
        sizes = [len(targets) for targets in self._targets]
        episode = draw_episode(sizes, seed=self._config.seed, number=number, num_tasks=len(sizes), num_queries=1)
        drawn = [int(query) for query in episode.queries]
        students = torch.stack([of[index] for of, index in zip(self._students, drawn, strict=True)])
        targets = torch.stack([of[index] for of, index in zip(self._targets, drawn, strict=True)])
        models, queries = self._network.encode_students(students), self._network.encode_images(self._images)
        error = F.mse_loss(self._network.predict(queries, models), targets)
        loss = contrastive_loss(models @ queries.T, self._config.margin) + error
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), 0

    def present(self) -> Tans:
        """The predictor as it stands."""
        return Tans(self._network)

    def trained(self, tensors: Mapping[str, torch.Tensor], *, is_selected: bool) -> Tans:
        """The predictor of these weights."""
        network = TansNetwork(self._network.spec, seed=0)
        network.load_state_dict({name.removeprefix("phi."): value for name, value in tensors.items()})
        return Tans(network, is_selected=is_selected)


def _mean(images: torch.Tensor) -> torch.Tensor:
    """(1, F): the mean of image features (c, m, F)."""
    return images.mean(dim=(0, 1))[None]


def _copy(network: TansNetwork) -> TansNetwork:
    """On the CPU, frozen; nobody's training moves it."""
    copied = TansNetwork(network.spec, seed=0)
    copied.load_state_dict(network.state_dict())
    return copied.requires_grad_(requires_grad=False)
