"""What a collection will take: device-hours, time for pools of lanes, and room in the store. Pure: it measures nothing.

The interval: the tenth and the ninetieth of a hundred measured samples against the line through them, and at least a
quarter to either side for what is not measured (the store's answers, restarts, other work on the machine).
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cluster.effort import Line, fit_line
from cluster.outlines import Outline
from cluster.probe import Samples
from cluster.settings import LaneConfig
from cluster.sizing import Sizing
from dass.cost import count_macs
from dass.records import Run, Task

LEAST_SPREAD = 0.25
LEAST_RECORDS = 4
LANE_START_S = 15.0  # until a lane of a Ray that runs has its first lease
RUN_S = 0.02  # of the lane and the store for each run, beside its training
_POOLS = tuple(2**power for power in range(11))


@dataclass(frozen=True)
class Range:
    """Seconds: what is expected, and an interval around it."""

    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, seconds: float, line: Line) -> "Range":
        """The interval of what a line says."""
        return cls(seconds * min(line.low, 1 - LEAST_SPREAD), seconds, seconds * max(line.high, 1 + LEAST_SPREAD))

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)


NOTHING = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Pool:
    """What so many lanes make of it: until when, and for how many lane-seconds in all, idle ones included."""

    lanes: int
    eta_s: Range
    lane_s: Range


class Speed(Protocol):
    """What a run takes."""

    def run(self, run: Run, task: Task, macs: int, asked: float) -> Range:
        """Seconds of a run of `task`, where the share `asked` of the task's cohorts asks the teacher; others find its answers."""


class MeasuredSpeed:
    """By samples of steps."""

    def __init__(self, samples: Samples, settings: LaneConfig) -> None:
        self._samples = samples
        self._steps = _line(samples.steps or samples.teacher_steps)
        self._teacher_steps = _line(samples.teacher_steps)
        self._valid = _line(samples.valid)
        self._teacher_pass_s = float(np.median(samples.teacher_pass))
        self._build_s = float(np.median(samples.build))
        self._checkpoint_share = samples.size * float(np.median(samples.save)) / settings.checkpoint_s

    def run(self, run: Run, task: Task, macs: int, asked: float) -> Range:
        """See Speed."""
        recipe = run.recipe
        line = self._teacher_steps if run.teacher is None else self._steps
        steps = recipe.epochs * max(1, len(task.train) // recipe.batch_size)
        evaluations = 1 + math.ceil(recipe.epochs / recipe.eval_every)
        asked_s = 0.0 if run.teacher is None else asked * self._teacher_pass_s / self._samples.size
        training_s = steps * (line.seconds(macs) + asked_s) + evaluations * len(task.valid) * self._valid.seconds(macs)
        return Range.around(training_s * (1 + self._checkpoint_share) + self._build_s + RUN_S, line)


class RecordedSpeed:
    """By the records of runs under the same recipe, per image of the train part.

    Raises:
        KeyError: in `run`, for a kind of run of which there are fewer than `LEAST_RECORDS`.
    """

    def __init__(self, tasks: Mapping[str, Task], known: Iterable[Outline]) -> None:
        points: dict[tuple[str, bool], list[tuple[float, float]]] = defaultdict(list)
        for outline in known:
            task, recipe, is_teacher = outline.kind
            if outline.is_measured and task in tasks:
                points[recipe, is_teacher].append((outline.macs, outline.seconds / len(tasks[task].train)))
        self._lines = {kind: _line(some) for kind, some in points.items() if len(some) >= LEAST_RECORDS}

    def knows(self, runs: Iterable[Run]) -> bool:
        """Whether there are records of all these kinds of runs."""
        return all(_kind(run) in self._lines for run in runs)

    def run(self, run: Run, task: Task, macs: int, asked: float) -> Range:  # noqa: ARG002 - records know how often they asked
        """See Speed."""
        line = self._lines[_kind(run)]
        return Range.around(line.seconds(macs) * len(task.train) + RUN_S, line)


def _line(points: Iterable[tuple[float, float]]) -> Line:
    macs, seconds = zip(*points, strict=True)
    return fit_line(macs, seconds)


def _kind(run: Run) -> tuple[str, bool]:
    return run.recipe.id, run.teacher is None


@dataclass(frozen=True)
class Quote:
    """What is left of a plan: `work_s` is the training alone, on one lane at a time."""

    num_teachers: int
    num_students: int
    work_s: Range
    pools: tuple[Pool, ...]


def quote(runs: Sequence[Run], tasks: Mapping[str, Task], speed: Speed, settings: LaneConfig) -> Quote:
    """What these runs, which have no record, will take on lanes of this shape."""
    teachers: dict[str, Range] = {}
    cohorts: dict[str, list[Range]] = defaultdict(list)
    students: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.teacher is None:
            teachers[run.task] = speed.run(run, tasks[run.task], _macs(run, tasks[run.task]), 0.0)
        else:
            students[run.task].append(run)
    size = Sizing.first(settings.cohort_size).size
    for task, some in students.items():
        num = math.ceil(len(some) / size)
        asked = min(settings.num, num) / num
        took = [speed.run(run, tasks[task], _macs(run, tasks[task]), asked) for run in some]
        cohorts[task] = [sum(took[start : start + size], NOTHING) for start in range(0, len(took), size)]
    work = sum(teachers.values(), sum((each for some in cohorts.values() for each in some), NOTHING))
    num_jobs = max(len(teachers), sum(map(len, cohorts.values())))
    return Quote(
        num_teachers=len(teachers),
        num_students=sum(map(len, students.values())),
        work_s=work,
        pools=tuple(_pool(teachers, cohorts, num, settings.idle_s) for num in pools(num_jobs, settings.num)),
    )


def _macs(run: Run, task: Task) -> int:
    return count_macs(run.student, task.resolution, task.num_classes)


def _pool(teachers: Mapping[str, Range], cohorts: Mapping[str, Sequence[Range]], num_lanes: int, idle_s: float) -> Pool:
    found = [
        schedule(
            {task: getattr(took, name) for task, took in teachers.items()},
            {task: [getattr(took, name) for took in some] for task, some in cohorts.items()},
            num_lanes,
            idle_s,
        )
        for name in ("low", "expected", "high")
    ]
    ends, held = zip(*found, strict=True)
    start = Range(LANE_START_S / 2, LANE_START_S, 2 * LANE_START_S)
    num_started = min(num_lanes, len(teachers) + sum(map(len, cohorts.values())))
    return Pool(num_lanes, Range(*ends) + start, sum([start] * num_started, Range(*held)))


def pools(num_jobs: int, num_lanes: int) -> list[int]:
    """The numbers of lanes worth showing: powers of two while they have something to do, and the configured one."""
    return sorted({num for num in _POOLS if num == 1 or num <= num_jobs} | {num_lanes})


def schedule(
    teachers: Mapping[str, float], cohorts: Mapping[str, Sequence[float]], num_lanes: int, idle_s: float = 0.0
) -> tuple[float, float]:
    """When the last of some lanes ends, and for how long all of them together are held.

    Each is held until `idle_s` after its own last work, or until there is none left for any.
    teachers: by task the seconds of its teacher, where that is still to be trained; its cohorts, by task the seconds of
    each, wait for it. As in the queue, what most work waits for comes first, then what takes longest.
    """
    first = sorted(teachers, key=lambda task: sum(cohorts.get(task, ())))  # the last of the list is next
    ready = [-seconds for task, some in cohorts.items() if task not in teachers for seconds in some]
    heapq.heapify(ready)
    teaching: list[tuple[float, str]] = []
    lanes = [(0.0, lane) for lane in range(num_lanes)]
    ended: dict[int, float] = defaultdict(float)
    while first or ready or teaching:
        now, lane = heapq.heappop(lanes)
        while teaching and teaching[0][0] <= now:
            for seconds in cohorts.get(heapq.heappop(teaching)[1], ()):
                heapq.heappush(ready, -seconds)
        if first:
            task = first.pop()
            ended[lane] = now + teachers[task]
            heapq.heappush(teaching, (ended[lane], task))
        elif ready:
            ended[lane] = now - heapq.heappop(ready)
        elif teaching:
            heapq.heappush(lanes, (teaching[0][0], lane))
            continue
        else:
            break
        heapq.heappush(lanes, (ended[lane], lane))
    end = max(ended.values(), default=0.0)
    return end, sum(min(own + idle_s, end) for own in ended.values())
