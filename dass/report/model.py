"""What the page shows, as plain values: the caller gathers them, the page only draws.

Every part may be empty. A page made before the search or the distillation then says what is missing and which verb
makes it. Accuracies are top-1 in percent; MACs and parameters are those on the target task at its resolution.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dass.records import Record, Student

TaskRole = Literal["meta-train", "meta-valid", "target"]


@dataclass(frozen=True)
class ScoredPoint:
    """A student with its predicted accuracy on the target's valid part, and its cost."""

    student: Student
    score: float
    macs: int
    params: int


@dataclass(frozen=True)
class Final:
    """A student chosen to be distilled in full.

    role: `recommended` for the one the search chose; every other role is a control, such as `random` or `largest`.
    predicted: what the predictor said before, or None where it was not asked.
    records: one per seed; empty while nothing is distilled.
    """

    role: str
    student: Student
    predicted: float | None
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Observed:
    """A student of the target task that was really distilled and that the predictor has not seen."""

    point: ScoredPoint
    record: Record


@dataclass(frozen=True)
class TaskRow:
    """How far the collection of one task is; `accuracies_pct` are those of its finished students on valid."""

    name: str
    role: TaskRole
    num_classes: int
    teacher_accuracy_pct: float | None
    planned: int
    finished: int
    diverged: int
    accuracies_pct: tuple[float, ...] = ()


@dataclass(frozen=True)
class MetaPoint:
    """One row of the meta-training log; `valid_spearman` is None between the evaluations."""

    episode: int
    loss: float
    valid_spearman: float | None = None


@dataclass(frozen=True)
class Phase:
    """Wall time of one step of the way, in seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class PageData:
    """Everything the page shows.

    largest: the teacher's architecture, which exists before any teacher is trained.
    max_macs, max_params: the budget of the search; None where it was not limited.
    candidates: ranked, best first. notes: limits the reader should know, one sentence each.
    """

    title: str
    space: str
    resolution: int
    target: str
    classes: tuple[str, ...]
    teacher: Record | None
    largest: Student
    max_macs: int | None = None
    max_params: int | None = None
    candidates: tuple[ScoredPoint, ...] = ()
    finals: tuple[Final, ...] = ()
    observed: tuple[Observed, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    meta: tuple[MetaPoint, ...] = ()
    phases: tuple[Phase, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
