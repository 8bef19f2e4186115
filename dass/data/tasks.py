"""From a pack to the tasks of a job: which classes teach the predictor, which choose it, and which it never sees."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from dass.data.pack import Pack
from dass.data.splits import check_fractions, class_splits, tiny10, tiny10_disjoint, tiny25, whole_task
from dass.errors import ConfigError, DataError
from dass.records import Task
from dass.seeding import generator


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they become tasks."""

    source: str = field(
        default="digits", metadata={"help": "digits, imagefolder:PATH, parquet:PATH or torchvision:NAME:ROOT"}
    )
    resolution: int = field(default=32, metadata={"help": "side of the square images in pixels, divisible by 8"})
    split: Literal["classes", "tiny10", "tiny10_disjoint", "tiny25", "whole"] = field(
        default="classes",
        metadata={
            "help": "classes: tasks of a few classes each; tiny10: the paper's Tiny-ImageNet splits; tiny10_disjoint: ten "
            "without common classes; tiny25: tiny10 and fifteen small tasks; whole: one target and no meta-tasks"
        },
    )
    classes_per_task: int = field(default=3, metadata={"help": "classes of a meta-training or meta-validation task"})
    train_tasks: int = field(default=8, metadata={"help": "meta-training tasks"})
    valid_tasks: int = field(default=2, metadata={"help": "meta-validation tasks"})
    target_classes: int = field(default=0, metadata={"help": "classes kept aside as the unseen target task"})
    valid_fraction: float = field(
        default=0.2, metadata={"help": "share of a class cut off where no valid part is given"}
    )
    test_fraction: float = field(default=0.2, metadata={"help": "share of a class cut off where no test part is given"})
    seed: int = field(default=0, metadata={"help": "seed of every cut"})

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution % 8:
            raise ConfigError(
                f"data.resolution must be a positive multiple of 8, got {self.resolution}; set data.resolution"
            )
        for name, least in (("classes_per_task", 2), ("train_tasks", 1), ("valid_tasks", 1), ("target_classes", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} must be >= {least}, got {getattr(self, name)}; set data.{name}")
        if self.split != "classes" and self.target_classes:
            raise ConfigError(
                f"only data.split='classes' keeps classes aside as a target, got data.target_classes={self.target_classes} with "
                f"{self.split!r}; set data.target_classes=0 and give the target with --data"
            )
        if self.target_classes == 1:
            raise ConfigError("data.target_classes must be 0 or >= 2, got 1; one class cannot be classified")
        check_fractions(self.valid_fraction, self.test_fraction)


@dataclass(frozen=True)
class TaskSet:
    """Tasks by role. The classes of the three roles are disjoint; the target is None when none was asked for."""

    train: tuple[Task, ...]
    valid: tuple[Task, ...]
    target: Task | None

    @property
    def meta(self) -> tuple[Task, ...]:
        """The tasks whose records teach and choose the predictor."""
        return self.train + self.valid

    @property
    def all(self) -> tuple[Task, ...]:
        """Every task."""
        return self.meta if self.target is None else (*self.meta, self.target)


def make_tasks(pack: Pack, config: DataConfig) -> TaskSet:
    """The tasks of `config`, cut from a pack whose parts are assigned.

    Raises:
        DataError: the pack has too few classes for the tasks asked for.
    """
    if config.split == "classes":
        return _class_tasks(pack, config)
    if config.split == "whole":
        return TaskSet((), (), whole_task(pack, pack.name))
    splits = {"tiny10": tiny10, "tiny10_disjoint": tiny10_disjoint, "tiny25": tiny25}[config.split](
        pack, seed=config.seed
    )
    num_train = len(splits) * 8 // 10  # the paper's 8 + 2
    if config.train_tasks > num_train or config.valid_tasks > len(splits) - num_train:
        raise DataError(
            f"{config.split} has {num_train} meta-training and {len(splits) - num_train} meta-validation tasks, got "
            f"{config.train_tasks} and {config.valid_tasks}; lower data.train_tasks and data.valid_tasks"
        )
    valid = splits[num_train : num_train + config.valid_tasks]
    return TaskSet(tuple(splits[: config.train_tasks]), tuple(valid), None)


def _class_tasks(pack: Pack, config: DataConfig) -> TaskSet:
    """Three disjoint pools of classes; a task of a pool is one of its combinations of `classes_per_task` classes."""
    num_classes = len(pack.class_names)
    rng = generator("class tasks", config.seed, num_classes)
    shuffled = torch.randperm(num_classes, generator=rng).tolist()
    num_valid_pool = _pool_size(config.classes_per_task, config.valid_tasks)
    num_train_pool = num_classes - config.target_classes - num_valid_pool
    needed = _pool_size(config.classes_per_task, config.train_tasks)
    if num_train_pool < needed:
        raise DataError(
            f"{config.train_tasks} + {config.valid_tasks} tasks of {config.classes_per_task} classes and a target of "
            f"{config.target_classes}, all of disjoint classes, need {needed + num_valid_pool + config.target_classes} classes, "
            f"got {num_classes}; lower data.classes_per_task, data.train_tasks or data.target_classes"
        )
    target = sorted(shuffled[: config.target_classes])
    valid_pool = sorted(shuffled[config.target_classes : config.target_classes + num_valid_pool])
    train_pool = sorted(shuffled[config.target_classes + num_valid_pool :])
    train = _combinations(train_pool, config.classes_per_task, config.train_tasks, rng)
    valid = _combinations(valid_pool, config.classes_per_task, config.valid_tasks, rng)
    names = [f"train{i}" for i in range(len(train))] + [f"valid{i}" for i in range(len(valid))]
    groups = [*train, *valid]
    if target:
        groups, names = [*groups, target], [*names, "target"]
    tasks = class_splits(pack, groups, names)
    meta = tuple(tasks[: len(train)]), tuple(tasks[len(train) : len(train) + len(valid)])
    return TaskSet(*meta, tasks[-1] if target else None)


def _pool_size(classes_per_task: int, num_tasks: int) -> int:
    """The fewest classes of which `num_tasks` different combinations can be taken."""
    size = classes_per_task
    while math.comb(size, classes_per_task) < num_tasks:
        size += 1
    return size


def _combinations(pool: list[int], taken: int, num: int, rng: torch.Generator) -> list[list[int]]:
    """`num` distinct combinations, drawn without replacement."""
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < num:
        order = torch.randperm(len(pool), generator=rng).tolist()[:taken]
        drawn[tuple(sorted(pool[i] for i in order))] = None
    return [list(combination) for combination in drawn]
