"""What the meta-learner sees: tasks of stored students, and the part of them that each episode asks about.

Shape legend: n students, D length of the architecture vector, (C, h, w) the last feature map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dass.errors import DataError
from dass.seeding import generator


@dataclass(frozen=True, eq=False)
class MetaTask:
    """One teacher and the students that were really distilled from it. All tensors are float32, on `maps`' device.

    arch: (n, D) one-hot architectures. maps: (n, C, h, w) functional maps. targets_pct: (n,) accuracies after
    distillation. teacher_arch (D,), teacher_map (C, h, w) and teacher_accuracy_pct describe the teacher: the only
    example that adaptation may look at. Accuracies are percent on the task's valid part.

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
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise self._error(f"{name} must be {tuple(shape)}", f"{tuple(getattr(self, name).shape)}")
            object.__setattr__(self, name, getattr(self, name).to(self.maps.device))
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

    def _check_values(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.dtype != torch.float32:
            raise self._error(f"{name} must be float32", f"{tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise self._error(f"{name} must be finite", f"{int((~torch.isfinite(tensor)).sum())} other values")

    def _error(self, rule: str, received: str) -> DataError:
        return DataError(f"{rule}, got {received} in meta task {self.name!r}; build it again from the records")


@dataclass(frozen=True, eq=False)
class Episode:
    """Which tasks an episode trains on, as indices, and which students of each it predicts: int64 (n_q,) per task."""

    tasks: tuple[int, ...]
    queries: tuple[torch.Tensor, ...]


def draw_episode(
    num_students: Sequence[int], *, seed: int, number: int, num_tasks: int = 8, num_queries: int = 50
) -> Episode:
    """Episode `number` for tasks with these numbers of students.

    All tasks take part when there are at most `num_tasks`, otherwise that many at random, each with the first
    `num_queries` of a random permutation of its students, or all where it has fewer. Depends on `(seed, number)` alone,
    so that training resumes without the state of a random number generator.
    """
    rng = generator("episode", seed, number)
    if len(num_students) <= num_tasks:
        tasks = list(range(len(num_students)))
    else:
        tasks = torch.randperm(len(num_students), generator=rng)[:num_tasks].tolist()
    queries = tuple(torch.randperm(num_students[task], generator=rng)[:num_queries] for task in tasks)
    return Episode(tuple(tasks), queries)
