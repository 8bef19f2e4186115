"""What the meta-learner sees: tasks of stored students, and the part of them that each episode asks about.

Shape legend: n students, k of them support, D length of the architecture vector, (C, h, w) the last feature map,
c classes, m images of each, F features of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from dass.errors import DataError, PredictorMismatchError
from dass.seeding import generator


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What a frozen network makes of a task's training images: float32 (c, m, F), m images of each of c classes.

    encoder: which network, as `dass.data.image_features.ImageEncoder.id` says; features of two networks have nothing in
    common.

    Raises:
        DataError: a shape or dtype is wrong, there is no image, or a value is not finite.
    """

    values: torch.Tensor = field(repr=False)
    encoder: str

    def __post_init__(self) -> None:
        values = self.values
        if values.ndim != 3 or values.dtype != torch.float32 or not values.numel() or not values.isfinite().all():
            raise DataError(
                "image features must be finite float32 (classes, images, features), at least one of each, got "
                f"{values.dtype} {tuple(values.shape)}; compute them with `image_features`"
            )

    def to(self, device: torch.device) -> "ImageFeatures":
        """The same on this device."""
        return ImageFeatures(self.values.to(device), self.encoder)


def checked_images(images: ImageFeatures | None, encoder: str, num_features: int, num_images: int = 1) -> torch.Tensor:
    """The features (c, m, F), as a copy that autograd may use.

    Raises:
        PredictorMismatchError: there are none, another encoder made them, or m is less than `num_images`.
    """
    rule = f"a method that looks at images needs features of encoder {encoder}, {num_features} of an image and "
    rule += f"{num_images} or more images of each class"
    remedy = "compute them with `dass.data.image_features.image_features` and that encoder"
    if images is None:
        raise PredictorMismatchError(f"{rule}, got none; {remedy}")
    _, num, received = images.values.shape
    if (images.encoder, received) != (encoder, num_features) or num < num_images:
        raise PredictorMismatchError(f"{rule}, got {received} and {num} of {images.encoder}; {remedy}")
    with torch.inference_mode(mode=False):
        return images.values.clone()


class Measured(NamedTuple):
    """Students whose accuracies are known: arch (k, D), maps (k, C, h, w), targets_pct (k,), explained (k,) if it is known."""

    arch: torch.Tensor
    maps: torch.Tensor
    targets_pct: torch.Tensor
    explained: torch.Tensor | None = None

    @property
    def seen(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Maps, architectures and what they explain: all that a method scores students by."""
        return self.maps, self.arch, self.explained

    def clone(self) -> "Measured":
        """A copy."""
        explained = None if self.explained is None else self.explained.clone()
        return Measured(self.arch.clone(), self.maps.clone(), self.targets_pct.clone(), explained)


@dataclass(frozen=True, eq=False)
class Support:
    """All that a method may look at before it ranks the students of a task.

    teacher_arch (D,), teacher_map (C, h, w) and teacher_accuracy_pct: the teacher as if it were a student of itself.
    images: the task's training images; students: those that were distilled already. Both only where a method asks for
    them. All tensors are float32.
    """

    teacher_arch: torch.Tensor = field(repr=False)
    teacher_map: torch.Tensor = field(repr=False)
    teacher_accuracy_pct: float
    images: ImageFeatures | None = None
    students: Measured | None = None


@dataclass(frozen=True, eq=False)
class MetaTask:
    """One teacher and the students that were really distilled from it. All tensors are float32, on `maps`' device.

    arch: (n, D) one-hot architectures. maps: (n, C, h, w) functional maps. targets_pct: (n,) accuracies after
    distillation. teacher_arch (D,), teacher_map (C, h, w) and teacher_accuracy_pct describe the teacher. Accuracies are
    percent on the task's valid part. images, explained (n,): only for methods that look at them; the latter is what
    `dass.explained` says of the students. What adaptation may look at is `support`.

    Raises:
        DataError: a shape or dtype is wrong, a value is not finite or out of range, or there is no student.
    """

    name: str
    arch: torch.Tensor = field(repr=False)
    maps: torch.Tensor = field(repr=False)
    targets_pct: torch.Tensor = field(repr=False)
    teacher_arch: torch.Tensor = field(repr=False)
    teacher_map: torch.Tensor = field(repr=False)
    teacher_accuracy_pct: float
    images: ImageFeatures | None = None
    explained: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.maps.ndim != 4 or self.arch.ndim != 2 or not len(self.maps):
            raise self._error(
                "maps must be (n, C, h, w) and arch (n, D) with n >= 1",
                f"{tuple(self.maps.shape)} and {tuple(self.arch.shape)}",
            )
        expected = {
            "arch": (len(self.maps), self.arch.shape[1]),
            "targets_pct": (len(self.maps),),
            "teacher_arch": self.arch.shape[1:],
            "teacher_map": self.maps.shape[1:],
        }
        if self.explained is not None:
            expected["explained"] = (len(self.maps),)
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise self._error(f"{name} must be {tuple(shape)}", f"{tuple(getattr(self, name).shape)}")
            object.__setattr__(self, name, getattr(self, name).to(self.maps.device))
        if self.images is not None:
            object.__setattr__(self, "images", self.images.to(self.maps.device))
        for name in ("maps", *expected):
            self._check_values(name, getattr(self, name))
        if not 0 <= self.teacher_accuracy_pct <= 100:
            raise self._error("teacher_accuracy_pct must be in 0..100", f"{self.teacher_accuracy_pct}")
        if self.targets_pct.min() < 0 or self.targets_pct.max() > 100:
            raise self._error("targets_pct must be in 0..100", f"{self.targets_pct.min()} to {self.targets_pct.max()}")

    @property
    def num_students(self) -> int:
        """Number of stored students."""
        return len(self.maps)

    def students(self, chosen: torch.Tensor) -> Measured:
        """These students, int64 (k,), with their accuracies."""
        chosen = chosen.to(self.maps.device)
        explained = None if self.explained is None else self.explained[chosen]
        return Measured(self.arch[chosen], self.maps[chosen], self.targets_pct[chosen], explained)

    def support(self, chosen: torch.Tensor | None = None) -> Support:
        """What adaptation may look at: the teacher, the images, and these students, int64 (k,), if any."""
        students = None if chosen is None or not len(chosen) else self.students(chosen)
        return Support(self.teacher_arch, self.teacher_map, self.teacher_accuracy_pct, self.images, students)

    def _check_values(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.dtype != torch.float32:
            raise self._error(f"{name} must be float32", f"{tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise self._error(f"{name} must be finite", f"{int((~torch.isfinite(tensor)).sum())} other values")

    def _error(self, rule: str, received: str) -> DataError:
        return DataError(f"{rule}, got {received} in meta task {self.name!r}; build it again from the records")


@dataclass(frozen=True, eq=False)
class Episode:
    """Which tasks an episode trains on, as indices, and which students of each it adapts to and predicts.

    queries: int64 (n_q,) per task. support: int64 (k,) per task, none of them a query.
    """

    tasks: tuple[int, ...]
    queries: tuple[torch.Tensor, ...]
    support: tuple[torch.Tensor, ...]


def draw_episode(
    num_students: Sequence[int],
    *,
    seed: int,
    number: int,
    num_tasks: int = 8,
    num_queries: int = 50,
    num_support: int = 0,
) -> Episode:
    """Episode `number` for tasks with these numbers of students.

    All tasks take part when there are at most `num_tasks`, otherwise that many at random. Of a random permutation of a
    task's students the first `num_support` are support and the next `num_queries` queries, or all that are left.
    Depends on `(seed, number)` alone, so that training resumes without the state of a random number generator.
    """
    rng = generator("episode", seed, number)
    if len(num_students) <= num_tasks:
        tasks = list(range(len(num_students)))
    else:
        tasks = torch.randperm(len(num_students), generator=rng)[:num_tasks].tolist()
    drawn = [torch.randperm(num_students[task], generator=rng)[: num_support + num_queries] for task in tasks]
    return Episode(
        tuple(tasks), tuple(order[num_support:] for order in drawn), tuple(order[:num_support] for order in drawn)
    )


def split_support(num_students: int, num_support: int, *seed: str | int) -> tuple[torch.Tensor, torch.Tensor]:
    """(support, rest), int64 indices: `num_support` students at random by `seed`, and all others in their order.

    Whoever measures a method ranks the rest alone: what was shown to it is no evidence.

    Raises:
        ValueError: nobody would be left to rank.
    """
    if not 0 <= num_support < num_students:
        raise ValueError(
            f"the number of support students must be in 0..{num_students - 1}, got {num_support}; collect more records"
        )
    order = torch.randperm(num_students, generator=generator("support", *seed))
    return order[:num_support], order[num_support:].sort().values
