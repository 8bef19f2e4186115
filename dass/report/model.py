"""What the page shows, as plain values: the caller gathers them, the page only draws.

Every part may be empty. A page made before the search or the distillation then says what is missing and which verb
makes it. Accuracies are top-1 in percent, as are the scores of candidates, which are predicted accuracies on the target's
valid part; MACs and parameters are those on the target task at its resolution, except a run's, which are its own task's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dass.records import Record, Student
from dass.search.ranking import Candidate

TaskRole = Literal["meta-train", "meta-valid", "target"]
TrialStatus = Literal["finished", "stopped", "failed"]


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

    point: Candidate
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
class RunRow:
    """One distilled student as its record tells of it; the accuracy is that of the best epoch on valid."""

    task: str
    student: Student
    macs: int
    params: int
    accuracy_pct: float | None
    status: str
    seed: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class TuneTrial:
    """One trial of the tuning of the meta-training.

    settings: those that differ between the trials. curve: episode and Spearman on meta-validation, None where it was
    undefined. seed_spearmans: one per seed, for finalists only.
    """

    number: int
    settings: Mapping[str, Any]
    status: TrialStatus
    curve: tuple[tuple[int, float | None], ...] = ()
    seed_spearmans: tuple[float, ...] = ()
    is_winner: bool = False


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
    candidates: ranked, best first. scored, sample: how many there were in all, and some of them that stand for all, where
    not all are kept; 0 and empty otherwise. runs: every distilled student of every task. tuning: empty where none was made.
    notes: limits the reader should know, one sentence each. advice: how far the ranking can be trusted, likewise.
    is_predictor_shipped: whether the predictor came with the package, so that nothing was meta-trained here.
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
    candidates: tuple[Candidate, ...] = ()
    scored: int = 0
    sample: tuple[Candidate, ...] = ()
    finals: tuple[Final, ...] = ()
    observed: tuple[Observed, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    runs: tuple[RunRow, ...] = ()
    meta: tuple[MetaPoint, ...] = ()
    tuning: tuple[TuneTrial, ...] = ()
    phases: tuple[Phase, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    is_predictor_shipped: bool = False
