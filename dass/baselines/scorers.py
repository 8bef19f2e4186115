"""Baselines as scorers: what is known of the architecture alone, and what is measured on the student's network.

A student that a baseline cannot value - its number is NaN, infinite, or beyond float32 - gets FAILED, so it ranks last
everywhere and rank correlations stay defined; `failures` names those students.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from dass.baselines.diswot import View, diswot, view
from dass.baselines.minibatch import Minibatch
from dass.baselines.proxies import Proxy
from dass.data.batches import ResidentBatches
from dass.explained import TeacherView
from dass.kd.cohort import evaluate
from dass.kd.teacher import Teacher
from dass.networks import SmallResNet, build
from dass.records import Init, Student
from dass.remap import remap
from dass.seeding import generator

FAILED = -math.inf


def to_scores(values: Iterable[float]) -> torch.Tensor:
    """float32 (n,) on the CPU, FAILED where a value is not finite in float32."""
    scores = torch.tensor(list(values), dtype=torch.float64).float()
    return torch.where(torch.isfinite(scores), scores, FAILED)


def failures(students: Sequence[Student], scores: torch.Tensor) -> list[Student]:
    """The students, in their order, that a baseline could not value."""
    return [student for student, score in zip(students, scores.tolist(), strict=True) if score == FAILED]


def num_blocks(student: Student) -> float:
    """The student's depth: its blocks in all stages."""
    return float(sum(student.depths))


def random_value(student: Student, seed: int) -> float:
    """A number in 0..1 that follows from (student, seed) alone."""
    return float(torch.rand((), generator=generator("random baseline", seed, student.canonical)))


class ArchScorer:
    """Values students by a function of the architecture. Numbers beyond 2**24 are rounded to float32's 24 bits."""

    def __init__(self, value: Callable[[Student], float]) -> None:
        self._value = value

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,): the values."""
        return to_scores(map(self._value, students))

    def to(self, device: torch.device) -> "ArchScorer":  # noqa: ARG002 - there is nothing to move
        """The same scorer."""
        return self


@dataclass(frozen=True, eq=False)
class InitialNetworks:
    """Students as networks in train mode on `device`, channels-last, each with weights that depend on itself alone.

    init: `scratch` draws them from (student, seed) by the space's default; the other modes remap them from the teacher.
    """

    num_classes: int
    device: torch.device
    seed: int = 0
    teacher: Teacher | None = None
    init: Init = "scratch"

    def build(self, student: Student) -> SmallResNet:
        """The student's network.

        Raises:
            SpaceError: the student is no slice of the teacher.
        """
        if self.teacher is None or self.init == "scratch":
            network = build(student, self.num_classes, generator("baseline init", self.seed, student.canonical))
        else:
            network = build(student, self.num_classes)
            network.load_state_dict(remap(self.teacher.state, self.teacher.student, student, self.init))
        network.to(self.device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]  # missing in its stubs

    def to(self, device: torch.device) -> "InitialNetworks":
        """The same on this device."""
        return replace(self, device=device)


class Measure(Protocol):
    """A number of a student's initial network; higher is better."""

    def __call__(self, network: SmallResNet) -> float:
        """The network is the measure's own; it comes in train mode."""

    def to(self, device: torch.device) -> "Measure":
        """The same, for networks on this device."""


@dataclass(frozen=True, eq=False)
class ProxyValue:
    """A zero-cost proxy on one minibatch."""

    proxy: Proxy
    batch: Minibatch

    def __call__(self, network: SmallResNet) -> float:
        """See `Measure`."""
        return self.proxy(network, self.batch)

    def to(self, device: torch.device) -> "ProxyValue":
        """See `Measure`."""
        return replace(self, batch=self.batch.to(device))


@dataclass(frozen=True, eq=False)
class DisWOTValue:
    """The likeness of student and teacher on one minibatch."""

    teacher: View
    batch: Minibatch

    def __call__(self, network: SmallResNet) -> float:
        """See `Measure`."""
        return diswot(self.teacher, view(network, self.batch))

    def to(self, device: torch.device) -> "DisWOTValue":
        """See `Measure`."""
        return DisWOTValue(self.teacher.to(device), self.batch.to(device))


@dataclass(frozen=True, eq=False)
class ValidAccuracy:
    """Top-1 accuracy in percent on the whole valid part, in eval mode.

    Batch norm uses the running statistics that the weights came with: those of a remapped student are slices of its
    teacher's and not estimated anew, as in `dass.embed` and in a record's `init_accuracy_pct`.
    """

    data: ResidentBatches

    def __call__(self, network: SmallResNet) -> float:
        """See `Measure`."""
        ((loss, accuracy_pct),) = evaluate([network.eval()], self.data, "valid")
        return accuracy_pct if math.isfinite(loss) else math.nan

    def to(self, device: torch.device) -> "ValidAccuracy":
        """See `Measure`."""
        return ValidAccuracy(self.data.to(device))


class ViewScorer:
    """Values students by the share of the teacher's features that theirs explain."""

    def __init__(self, view: TeacherView) -> None:
        self._view = view

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,): the shares; company changes no more than last bits."""
        return to_scores(self._view.score(students).tolist())

    def to(self, device: torch.device) -> "ViewScorer":
        """The same scorer, computing on this device."""
        return ViewScorer(self._view.to(device))


class NetworkScorer:
    """Values students by a measure of their initial networks, one network at a time."""

    def __init__(self, networks: InitialNetworks, measure: Measure) -> None:
        self._networks = networks
        self._measure = measure

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,): the measure of each student, whatever its company."""
        return to_scores(self._measure(self._networks.build(student)) for student in students)

    def to(self, device: torch.device) -> "NetworkScorer":
        """The same scorer, computing on this device."""
        moved = copy.copy(self)
        moved._networks, moved._measure = self._networks.to(device), self._measure.to(device)
        return moved
