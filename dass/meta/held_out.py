"""What the predictor says of tasks that it never saw: the evidence that its uncertainty is calibrated on.

Each group of meta tasks is held out in turn; a predictor is meta-trained on the others as always, adapts to each task
held out by its teacher alone, and predicts all students of it (leave-one-group-out).

    for found in held_out(spec, config, groups):      # one group after the other; later: begin=number of groups done
        ...                                           # a HeldOut for each task of the group

A group is what counts as one draw of a task. Tasks that share images belong into one: the splits 2i and 2i + 1 of
`tiny10` have the same classes with train and valid parts exchanged, and the small tasks of `tiny25` some of their images,
so a predictor that has seen one has seen the other.

Of the groups that are not held out, the `num_valid` that follow the held-out one, the first after the last, are
meta-validation: so each group is held out once and chooses as often as every other, by its place alone and never by its
records, and the tasks stay exchangeable, which `dass.meta.calibration` rests on. The predictors have learned from fewer
groups than the one that is used in the end; their errors are rather too large for it than too small.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from dass.errors import ConfigError, DataError
from dass.meta.episodes import MetaTask, split_support
from dass.meta.method import MetaMethod, MethodConfig, MethodSpec
from dass.meta.novelty import TeacherSketch, sketch
from dass.meta.train import MetaTraining
from dass.records import Task

S = TypeVar("S", bound=MethodSpec)
M = TypeVar("M", bound=MetaMethod)

Group = Sequence[MetaTask]


@dataclass(frozen=True)
class HeldOut:
    """A task that was held out: what was predicted of its students, and what they really reached; percent, in pairs.

    group: the names of the tasks that were held out together. JSON-able: plain numbers and texts.

    Raises:
        DataError: the sides are not of one length, empty, or not finite.
    """

    name: str
    group: str
    teacher: TeacherSketch
    predicted_pct: tuple[float, ...] = field(repr=False)
    accuracies_pct: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        sides = (self.predicted_pct, self.accuracies_pct)
        if (
            len(sides[0]) != len(sides[1])
            or not sides[0]
            or not all(math.isfinite(value) for side in sides for value in side)
        ):
            raise DataError(
                f"a held-out task must have as many finite predictions as accuracies, at least 1, got {len(sides[0])} and "
                f"{len(sides[1])} for {self.name!r}; meta-train with a lower meta.lr where predictions are not finite"
            )


class Fold(NamedTuple):
    """Tasks that teach, that choose, and that are held out."""

    train: tuple[MetaTask, ...]
    valid: tuple[MetaTask, ...]
    held_out: tuple[MetaTask, ...]


def by_classes(tasks: Sequence[Task]) -> list[list[int]]:
    """Groups of tasks, as indices, whose classes of the same images are the same or a part; in the order of their first.

    Tasks that share but some of their classes, as `data.split="classes"` makes them, are groups of their own: what is
    found with them holds for tasks that have classes in common with those seen.
    """
    groups: list[list[int]] = []
    for index, task in enumerate(tasks):
        near = [group for group in groups if any(_is_part(task, tasks[other]) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append(sorted([*(member for group in near for member in group), index]))
    return sorted(groups)


def _is_part(one: Task, other: Task) -> bool:
    """Whether one of the tasks has all classes of the other."""
    ours, theirs = set(one.source_labels), set(other.source_labels)
    return one.source == other.source and (ours <= theirs or theirs <= ours)


def check_enough(num_groups: int, num_valid: int = 1) -> None:
    """Raise ConfigError unless one group can be held out, `num_valid` choose, and one at least is left to teach."""
    if num_valid < 1 or num_groups < num_valid + 2:
        raise ConfigError(
            f"to hold out one group there must be {num_valid} that choose, at least 1, and one that teaches, got "
            f"{num_groups} groups; collect records of more tasks, or lower the number that chooses"
        )


def folds(groups: Sequence[Group], num_valid: int = 1) -> list[Fold]:
    """For each group the fold that holds it out; `num_valid` groups choose.

    Raises:
        ConfigError: a group is empty, a task is in two, or none would be left to teach.
    """
    names = [task.name for group in groups for task in group]
    if not all(groups) or len(set(names)) < len(names):
        raise ConfigError(
            f"every group must hold tasks, and every task be in one group, got {[[t.name for t in g] for g in groups]}; "
            "name each task once"
        )
    check_enough(len(groups), num_valid)
    made = []
    for index in range(len(groups)):
        held, *others = (*groups[index:], *groups[:index])
        valid, train = others[:num_valid], others[num_valid:]
        made.append(Fold(_flat(train), _flat(valid), tuple(held)))
    return made


def predict(method: MetaMethod, tasks: Sequence[MetaTask]) -> tuple[HeldOut, ...]:
    """What a method says of a group of tasks that it was not trained on, given their teachers alone.

    A method that asks for measured students is shown some, which are left out of what is returned.
    """
    group = " ".join(task.name for task in tasks)
    found = []
    for task in tasks:
        shown, rest = split_support(task.num_students, method.num_support, task.name)
        students = task.students(rest)
        predicted = method.adapt(task.support(shown)).score(*students.seen)
        found.append(
            HeldOut(
                task.name,
                group,
                sketch(task.teacher_map, task.teacher_accuracy_pct),
                tuple(predicted.tolist()),
                tuple(students.targets_pct.tolist()),
            )
        )
    return tuple(found)


def held_out(
    spec: S, config: MethodConfig[S, M], groups: Sequence[Group], *, num_valid: int = 1, begin: int = 0
) -> Iterator[tuple[HeldOut, ...]]:
    """What is found for each group, one after the other; a whole meta-training each.

    begin: the number of groups whose results the caller has already. Whoever wants to keep the state within a group's
    meta-training drives `MetaTraining` over `folds` himself and calls `predict`; the results are the same.

    Raises:
        ConfigError: as in `folds` and `MetaTraining`.
        DataError: as in `MetaTraining`, or predictions are not finite.
    """
    for fold in folds(groups, num_valid)[begin:]:
        training = MetaTraining(spec, config, fold.train, fold.valid)
        for _ in training:
            pass
        yield predict(training.best(), fold.held_out)


def _flat(groups: Sequence[Group]) -> tuple[MetaTask, ...]:
    return tuple(task for group in groups for task in group)
