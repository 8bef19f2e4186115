"""The nouns of the project as plain values, and their identity.

A run's id is the hash of what decides its result: (task id, teacher id, student, recipe, seed) and an id version. The
canonical JSON omits every field that stands at its default, so a new field with a default changes no old id; therefore
**a default, once released, is never changed**. Golden ids are a test.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, get_args

from dass.errors import ConfigError, SpaceError

ID_VERSION = 1
ACC_UNIT = "percent"  # accuracies are 0..100 everywhere (algorithms: section 0)

Loss = Literal["kd", "kd_paper", "ce"]
Init = Literal["copy_paste_first", "copy_paste_last", "copy_paste_uniform", "copy_paste_uniform_last", "scratch"]
Precision = Literal["float32", "tf32", "bfloat16"]


def _plain(value: Any) -> Any:  # noqa: ANN401 - a walk over arbitrary JSON-able values
    """`value` as JSON types; dataclass fields at their default are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.default is dataclasses.MISSING or getattr(value, f.name) != f.default
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def canonical_json(value: Any) -> str:  # noqa: ANN401
    """One text for equal values: sorted keys, no spaces, dataclass fields at their default omitted, no NaN.

    Raises:
        ValueError: the value holds a NaN or an infinity.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_id(value: Any) -> str:  # noqa: ANN401
    """The first 32 hex digits (128 bits) of the SHA-256 of the canonical JSON."""
    return _text_id(canonical_json(value))


def _text_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, order=True)
class Student:
    """An architecture: the output widths of its blocks, stage by stage. Canonical and hashable; not a network."""

    widths: tuple[tuple[int, ...], ...]
    family: str = "small_resnet"

    @classmethod
    def from_rows(cls, depths: tuple[int, ...], rows: tuple[tuple[int, ...], ...]) -> "Student":
        """The student of `depths`; entries of a row beyond its depth are unused and cut off.

        Raises:
            SpaceError: a row is shorter than its depth.
        """
        if len(depths) != len(rows) or any(len(row) < depth for depth, row in zip(depths, rows, strict=False)):
            raise SpaceError(f"every stage needs at least `depth` widths, got depths {depths} and widths {rows}")
        return cls(tuple(tuple(row[:depth]) for depth, row in zip(depths, rows, strict=True)))

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return tuple(len(stage) for stage in self.widths)

    @cached_property
    def canonical(self) -> str:
        """Its canonical JSON: part of the id of every run of it."""
        return canonical_json(self)

    @property
    def key(self) -> str:
        """A short text that names the architecture, such as `16.32-64-64.128-256`."""
        return "-".join(".".join(str(width) for width in stage) for stage in self.widths)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a run trains. The defaults are the released KD recipe (algorithms: section 5.2).

    What a field means stands in its metadata, which is no part of a run's identity.
    """

    loss: Loss = field(
        default="kd",
        metadata={"help": "kd: the released loss; kd_paper: the paper's literal one; ce: labels alone, no teacher"},
    )
    temperature: float = field(default=6.0, metadata={"help": "divides the logits in the soft term"})
    alpha: float = field(default=0.5, metadata={"help": "share of the labels' term, 0 to 1; the teacher has the rest"})
    scale_by_t2: bool = field(default=True, metadata={"help": "multiply the soft term by temperature²; kd only"})
    label_smoothing: float = field(default=0.0, metadata={"help": "share of the label spread over all classes, 0 to 1"})
    epochs: int = field(default=50, metadata={"help": "passes over the train part"})
    batch_size: int = field(default=64, metadata={"help": "images per optimiser step"})
    lr: float = field(default=0.05, metadata={"help": "learning rate of the first step; a cosine takes it to 0"})
    momentum: float = field(default=0.9, metadata={"help": "Nesterov momentum of SGD, 0 to below 1"})
    weight_decay: float = field(default=3e-5, metadata={"help": "L2 penalty of SGD, on every parameter"})
    init: Init = field(
        default="copy_paste_first",
        metadata={"help": "how a student's weights are remapped from the teacher's; scratch: drawn anew"},
    )
    flip: float = field(default=0.5, metadata={"help": "probability of a horizontal flip"})
    vertical_flip: float = field(default=0.0, metadata={"help": "probability of a vertical flip"})
    crop_padding: int | None = field(
        default=None, metadata={"help": "zero padding of the random crop in pixels; none: 4 at 32 px, 8 elsewhere"}
    )
    eval_every: int = field(
        default=5, metadata={"help": "epochs between evaluations on the whole valid part; the last has one too"}
    )
    precision: Precision = field(
        default="float32",
        metadata={"help": "to what training rounds factors of a product; accuracies are always measured in float32"},
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # 6 and 6.0 must be one recipe
            value = getattr(self, f.name)
            if f.type is float and type(value) in (int, float):
                object.__setattr__(self, f.name, float(value) + 0.0)  # + 0.0 turns -0.0 into 0.0
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"recipe.{f.name} must be a finite number, got {value}; set a finite one")
            _check_kind(f.name, f.type, getattr(self, f.name))
        self._check("epochs", self.epochs >= 1, ">= 1")
        self._check("batch_size", self.batch_size >= 1, ">= 1")
        self._check("eval_every", self.eval_every >= 1, ">= 1")
        self._check("lr", self.lr > 0, "> 0")
        self._check("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self._check("weight_decay", self.weight_decay >= 0, ">= 0")
        self._check("temperature", self.temperature > 0, "> 0")
        for name in ("alpha", "label_smoothing", "flip", "vertical_flip"):
            self._check(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._check("crop_padding", self.crop_padding is None or self.crop_padding >= 0, ">= 0 or unset")

    def _check(self, name: str, is_legal: bool, rule: str) -> None:
        if not is_legal:
            raise ConfigError(f"recipe.{name} must be {rule}, got {getattr(self, name)}; set a legal value")

    @cached_property
    def canonical(self) -> str:
        """Its canonical JSON: part of the id of every run under it."""
        return canonical_json(self)

    @cached_property
    def id(self) -> str:
        """Hash of the recipe; part of the seed of the data order."""
        return _text_id(self.canonical)


def _check_kind(name: str, kind: Any, value: Any) -> None:  # noqa: ANN401 - any annotation and any value
    """Raise ConfigError unless `value` is of exactly this kind: 4.0 for 4, or 0 for False, would be a second id."""
    choices = get_args(kind) or (kind,)  # a Literal's texts, a union's types, or the type itself
    if value not in choices and type(value) not in choices:
        legal = " or ".join(getattr(choice, "__name__", repr(choice)) for choice in choices)
        raise ConfigError(f"recipe.{name} must be {legal}, got {value!r}; write one of these")


@dataclass(frozen=True)
class Task:
    """A dataset, or a class split of one, cut into train, valid and test; the pixels lie in the pack `source`.

    `id` is the hash of the task's images, labels and split (`dass.data.splits` computes it), so it does not depend on
    names. `train`, `valid` and `test` are indices into the pack; `source_labels[i]` is the pack's label of class `i`.
    """

    id: str
    name: str
    source: str
    resolution: int
    classes: tuple[str, ...]
    source_labels: tuple[int, ...]
    train: tuple[int, ...] = field(repr=False)
    valid: tuple[int, ...] = field(repr=False)
    test: tuple[int, ...] = field(repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class Run:
    """One training: `student` on `task` under `recipe` and `seed`, distilled from `teacher`.

    task: the task's id. teacher: the id of the run that trained the teacher, or the SHA-256 of a user's own weights;
    None for a run that trains a teacher itself.
    """

    task: str
    teacher: str | None
    student: Student
    recipe: Recipe
    seed: int = 0

    @cached_property
    def id(self) -> str:
        """32 hex digits: the run's name in the whole store; the content id of the parts below and the id version.

        The parts stand in the order of canonical JSON: a plan of 100,000 runs shares few recipes, and each is written once.
        """
        task, teacher, seed = json.dumps(self.task), json.dumps(self.teacher), json.dumps(self.seed)
        return _text_id(
            f'{{"recipe":{self.recipe.canonical},"seed":{seed},"student":{self.student.canonical},'
            f'"task":{task},"teacher":{teacher},"version":{ID_VERSION}}}'
        )


class Status(StrEnum):
    """How a run ended. A failure is an event, never a record, and never blocks a retry."""

    FINISHED = "finished"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation: epochs are counted from 1; losses are means over images; the accuracy is top-1 in percent."""

    epoch: int
    train_loss: float
    valid_loss: float
    valid_accuracy_pct: float


@dataclass(frozen=True)
class Result:
    """What training one run gave, before anybody says where and when it ran.

    All accuracies are top-1 in percent on the whole part. `best` is the maximum over the curve, `final` the last
    point; both are None when the run diverged before its first evaluation. `init_accuracy_pct` is the accuracy on
    valid before the first step. `test_accuracy_pct` is measured once, on the kept weights, only where weights are kept.
    """

    status: Status
    curve: tuple[CurvePoint, ...]
    init_accuracy_pct: float
    best_accuracy_pct: float | None
    final_accuracy_pct: float | None
    final_loss: float | None
    test_accuracy_pct: float | None = None
    diverged_epoch: int | None = None


@dataclass(frozen=True)
class Provenance:
    """Where, when and with what a run was trained; nothing here is part of its identity.

    incarnation and attempt are the token of the lease under which it was trained; records of version 1 knew the attempt
    alone.
    """

    started_at: str
    seconds: float
    attempt: int
    lane: str
    device: str
    threads: int
    memory_format: str
    code_version: str
    versions: Mapping[str, str]
    incarnation: int = 0


@dataclass(frozen=True)
class Record:
    """What a finished or diverged run leaves for ever: the run, its whole curve, its cost, and its provenance.

    macs and params are those of the student at the task's resolution and number of classes. weights is the SHA-256
    of the kept state dict (best epoch on valid) or None.
    """

    run: Run
    result: Result
    macs: int
    params: int
    num_classes: int
    resolution: int
    provenance: Provenance
    weights: str | None = None
