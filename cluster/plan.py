"""Pure decisions about runs: what is planned, what may start, which runs share a device, what follows a failure.

Nothing here reads a clock, a store or a cluster, so every decision can be tested and replayed.
"""

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from cluster.schema import build, damaged, plain
from dass.cost import count_macs
from dass.errors import ConfigError
from dass.records import Recipe, Run, Student, Task, content_id

_RUN_ID_LENGTH = 32  # a user's own teacher is named by a SHA-256, which is longer


@dataclass(frozen=True)
class Plan:
    """The runs that a collection wants, all different, in the order in which they were asked for."""

    name: str
    runs: tuple[Run, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if len({run.id for run in self.runs}) < len(self.runs):
            raise ConfigError(f"a plan must name each run once, got {self.name!r} with repetitions; remove them")

    @cached_property
    def id(self) -> str:
        """Hash of the name and the run ids."""
        return content_id({"name": self.name, "runs": [run.id for run in self.runs]})

    def to_document(self) -> dict[str, Any]:
        """The plan as JSON types; what runs share is written once, so thousands of runs stay small."""
        columns: dict[str, list[Hashable]] = {
            "tasks": [run.task for run in self.runs],
            "teachers": [run.teacher for run in self.runs],
            "students": [run.student for run in self.runs],
            "recipes": [run.recipe for run in self.runs],
        }
        factors = {name: list(dict.fromkeys(values)) for name, values in columns.items()}
        places = [_places(factors[name], values) for name, values in columns.items()]
        rows = zip(*places, (run.seed for run in self.runs), strict=True)
        return dict(plain({"id": self.id, "name": self.name, **factors, "runs": list(rows)}))

    @classmethod
    def from_document(cls, value: Mapping[str, Any]) -> "Plan":
        """The plan that `to_document` was called on.

        Raises:
            StoreError: the value is damaged, or the runs it holds are not those its id was made of.
        """
        key = f"plan {value.get('id')}"
        factors = build(_Factors, value, key)
        try:
            plan = cls(factors.name, tuple(factors.run(*row) for row in factors.runs))
        except IndexError as error:
            raise damaged(key, "a run outside its lists") from error
        if plan.id != factors.id:
            raise damaged(key, f"the runs of the plan {plan.id}")
        return plan


@dataclass(frozen=True)
class _Factors:
    """A plan's document: the values that runs share, and for each run its places in them and its seed."""

    id: str
    name: str
    tasks: tuple[str, ...]
    teachers: tuple[str | None, ...]
    students: tuple[Student, ...]
    recipes: tuple[Recipe, ...]
    runs: tuple[tuple[int, int, int, int, int], ...]

    def run(self, task: int, teacher: int, student: int, recipe: int, seed: int) -> Run:
        return Run(self.tasks[task], self.teachers[teacher], self.students[student], self.recipes[recipe], seed)


def _places(factors: Sequence[Hashable], values: Sequence[Hashable]) -> list[int]:
    place_of = {value: place for place, value in enumerate(factors)}
    return [place_of[value] for value in values]


def teacher_run(run: Run) -> str | None:
    """The id of the run that must be finished before this one starts; None when it can start at once."""
    return run.teacher if run.teacher and len(run.teacher) == _RUN_ID_LENGTH else None


def ready(runs: Iterable[Run], finished: AbstractSet[str], diverged: AbstractSet[str] = frozenset()) -> list[Run]:
    """The runs that may start now: they need no teacher's run, or it is finished and did not diverge."""
    usable = finished - diverged
    return [run for run in runs if (teacher := teacher_run(run)) is None or teacher in usable]


@dataclass(frozen=True)
class Outlook:
    """Of runs without a record: those that must wait for their teacher, and those that can never start and why."""

    waiting: AbstractSet[str]
    stuck: Mapping[str, str]


def look_ahead(runs: Sequence[Run], finished: AbstractSet[str], diverged: AbstractSet[str] = frozenset()) -> Outlook:
    """Who waits and who is stuck of `runs`, which are all that have no record, those that train now included."""
    stuck = blocked(runs, finished, diverged)
    startable = {run.id for run in ready(runs, finished, diverged)}
    return Outlook({run.id for run in runs} - startable - stuck.keys(), stuck)


def blocked(
    runs: Sequence[Run], finished: AbstractSet[str], diverged: AbstractSet[str] = frozenset()
) -> dict[str, str]:
    """The runs that can never start, by run id, and why.

    runs: all that are not finished, those that train now included.
    """
    by_id = {run.id: run for run in runs}
    reasons = {run_id: _why_blocked(run, by_id, finished, diverged) for run_id, run in by_id.items()}
    return {run_id: reason for run_id, reason in reasons.items() if reason}


def _why_blocked(
    run: Run, unfinished: Mapping[str, Run], finished: AbstractSet[str], diverged: AbstractSet[str]
) -> str | None:
    teacher = teacher_run(run)
    if teacher is None:
        return None
    if teacher in diverged:
        return f"its teacher {teacher} diverged"
    if teacher in finished:
        return None
    if teacher not in unfinished:
        return f"its teacher {teacher} is neither finished nor waiting to be trained"
    return _why_blocked(unfinished[teacher], unfinished, finished, diverged)


def work_of(runs: Iterable[Run], tasks: Mapping[str, Task]) -> dict[str, float]:
    """The work of each run by run id, in MACs of the student's passes over its training images.

    tasks: by task id, those of all runs.
    """
    macs: dict[tuple[Student, str], int] = {}
    found = {}
    for run in runs:
        task = tasks[run.task]
        if (run.student, task.id) not in macs:
            macs[run.student, task.id] = count_macs(run.student, task.resolution, task.num_classes)
        found[run.id] = float(run.recipe.epochs * len(task.train) * macs[run.student, task.id])
    return found


def cut_cohorts(
    runs: Sequence[Run],
    position_of: Mapping[str, Hashable],
    size: int,
    work_of: Mapping[str, float] | None = None,
) -> list[tuple[Run, ...]]:
    """Cohorts of at most `size` runs, the one with most work first, each from its longest run to its shortest.

    The runs of a cohort share task, teacher, recipe, seed and position. Equal work keeps the order of `runs`.

    position_of: by run id how far a run has come; runs that are not named have not begun.
    work_of: by run id the work that remains, in any one unit; without it, the epochs of the recipe.
    """
    _check_size(size)
    work = {run.id: _work(run, work_of or {}) for run in runs}
    groups: dict[Hashable, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: -work[run.id]):
        groups[_company(run, position_of)].append(run)
    cohorts = [tuple(group[i : i + size]) for group in groups.values() for i in range(0, len(group), size)]
    return sorted(cohorts, key=lambda cohort: -math.fsum(work[run.id] for run in cohort))


class Startable:
    """Runs that may start, from which one cohort after another is taken in time that does not grow with their number.

    What is left is as if it had never been anything else, so this may be kept until other runs may start too.

    Args:
        runs: of equal ones the first is taken first.
        position_of, work_of: as for `cut_cohorts`.
        need_of: by run id how many other runs wait for it; what most wait for comes first, then what takes longest.
        alone: the ids of runs that share a cohort with no other, and come last: what ends its lane, and with it one
            of the lane's few lives, must not come before what can be done.
        priority_of: by task id; before anything else the higher one comes first, and a task that is not named has 0.
    """

    def __init__(
        self,
        runs: Iterable[Run],
        position_of: Mapping[str, Hashable],
        work_of: Mapping[str, float],
        need_of: Mapping[str, int],
        alone: AbstractSet[str] = frozenset(),
        priority_of: Mapping[str, int] | None = None,
    ) -> None:
        urgency = priority_of or {}
        waiting = [
            _Waiting(urgency.get(run.task, 0), need_of.get(run.id, 0), _work(run, work_of), -place, run)
            for place, run in enumerate(runs)
        ]
        groups: dict[Hashable, deque[_Waiting]] = defaultdict(deque)
        for each in sorted(waiting, reverse=True):
            groups[each.run.id if each.run.id in alone else _company(each.run, position_of)].append(each)
        self._groups = dict(groups)
        self._alone = frozenset(alone)

    def __bool__(self) -> bool:
        return bool(self._groups)

    def num_cohorts(self, size: int) -> int:
        """How many cohorts of at most `size` runs are left to take."""
        return sum(math.ceil(len(group) / size) for group in self._groups.values())

    def take(self, size: int) -> tuple[Run, ...]:
        """The next cohort, of at most `size` runs that share task, teacher, recipe, seed and position; () at the end."""
        _check_size(size)
        firsts = {company: list(itertools.islice(group, size)) for company, group in self._groups.items()}
        if not firsts:
            return ()
        company = max(firsts, key=lambda company: (company not in self._alone, *_rank(firsts[company])))
        group = self._groups[company]
        for _ in firsts[company]:
            group.popleft()
        if not group:
            del self._groups[company]
        return tuple(each.run for each in firsts[company])


class _Waiting(NamedTuple):
    priority: int
    need: int
    work: float
    later: int  # minus the place in the plan
    run: Run


def _rank(cohort: Sequence[_Waiting]) -> tuple[int, int, float, int]:
    need, work = sum(each.need for each in cohort), math.fsum(each.work for each in cohort)
    return cohort[0].priority, need, work, cohort[0].later


def _company(run: Run, position_of: Mapping[str, Hashable]) -> Hashable:
    """What the runs of a cohort share."""
    return run.task, run.teacher, run.recipe.id, run.seed, position_of.get(run.id)


def _work(run: Run, work_of: Mapping[str, float]) -> float:
    return work_of.get(run.id, float(run.recipe.epochs))


def _check_size(size: int) -> None:
    if size < 1:
        raise ConfigError(f"a cohort must hold >= 1 runs, got {size}; set lanes.cohort_size")


class FailureKind(StrEnum):
    """How an attempt at a run ended without a record."""

    RETURNED = "returned"  # handed back unharmed: preemption, the end of a lane, or a cohort made smaller
    LANE_LOST = "lane lost"  # the lane died or fell silent, and nobody knows why
    STORE = "store"  # the store could not be read or written
    OUT_OF_MEMORY = "out of memory"
    ERROR = "error"  # anything else that the run itself raised


class Decision(StrEnum):
    """What to do with a run after a failed attempt."""

    RETRY = "retry"
    RETRY_ALONE = "retry alone"  # in a cohort of one: it may be the one that takes the others with it
    GIVE_UP = "give up"  # until the next submission, which tries again


_RETRIES: Mapping[FailureKind, tuple[float, int]] = {  # in company, then alone
    FailureKind.RETURNED: (math.inf, 0),
    FailureKind.LANE_LOST: (1, 1),  # given up before its lane is, which may be started again three times
    FailureKind.STORE: (3, 0),
    FailureKind.OUT_OF_MEMORY: (0, 1),
    FailureKind.ERROR: (0, 2),
}


def after_failure(attempts: int, kind: FailureKind) -> Decision:
    """What follows when an attempt at a run ended with `kind`.

    attempts: how many attempts at this run ended so until now, this one included.
    """
    together, alone = _RETRIES[kind]
    if attempts <= together:
        return Decision.RETRY
    return Decision.RETRY_ALONE if attempts <= together + alone else Decision.GIVE_UP
