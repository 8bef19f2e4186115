"""Measures what training takes on the device at hand: a few steps of real cohorts, thrown away.

As many processes measure side by side as lanes would share this machine, because they slow each other down. Nothing is
learned (the teacher is drawn at random, the learning rate is next to zero), but all that costs time is done as lanes do it.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.memory import share_of
from cluster.runtime import compute_on
from cluster.settings import LaneConfig
from cluster.sizing import Sizing
from dass.allocator import keep_freed_memory
from dass.cost import count_macs
from dass.data.batches import ResidentBatches
from dass.data.pack import Pack
from dass.errors import ClusterError
from dass.kd.cohort import Cohort, evaluate
from dass.kd.teacher import Teacher, teacher_run
from dass.networks import build
from dass.records import Recipe, Run, Student, Task
from dass.seeding import generator
from dass.spaces import get_space

QUANTILES = (0.5, 0.1, 0.9)  # of the students by their MACs: where cohorts are measured
_VALID_IMAGES = 256
_TRAIN_BATCHES = 40
_LOOK = {"cpu": 2, "cuda": 10}  # steps between two looks at the clock, for which a GPU must be waited for
_MOST_LOOKS = 20  # at one cohort
_MEET_S = 120.0  # for how long processes wait for each other to have started

Point = tuple[float, float]  # MACs, and seconds for a student


@dataclass(frozen=True)
class Work:
    """What is to be measured: plain values, because they cross to other processes.

    students: what may be trained, by rising MACs. seconds: how long to measure at most, about.
    """

    task: Task
    space: str
    students: tuple[Student, ...]
    teacher: Recipe
    student: Recipe
    settings: LaneConfig
    seconds: float


@dataclass(frozen=True)
class Samples:
    """What was measured, each sample on its own.

    steps: an optimiser step of a student, in a cohort of `size`, the teacher's pass left out. teacher_steps: one of the
    teacher's own training. teacher_pass: seconds of the teacher's pass over a batch. valid: evaluation of one image.
    build: making a student and its optimiser. save: seconds to write down a student's state; state_bytes: their length.
    """

    size: int
    steps: tuple[Point, ...]
    teacher_steps: tuple[Point, ...]
    teacher_pass: tuple[float, ...]
    valid: tuple[Point, ...]
    build: tuple[float, ...]
    save: tuple[float, ...]
    state_bytes: int

    def __add__(self, other: "Samples") -> "Samples":
        return Samples(
            size=self.size,
            steps=self.steps + other.steps,
            teacher_steps=self.teacher_steps + other.teacher_steps,
            teacher_pass=self.teacher_pass + other.teacher_pass,
            valid=self.valid + other.valid,
            build=self.build + other.build,
            save=self.save + other.save,
            state_bytes=max(self.state_bytes, other.state_bytes),
        )


def side_by_side(settings: LaneConfig) -> int:
    """How many lanes share this machine's cores, or one of its GPUs."""
    return max(1, min(settings.num, round(1 / share_of(settings))))


def probe(work: Work, pack: Pack) -> Samples:
    """The samples of all processes that measure side by side.

    Raises:
        ClusterError: one of them died.
    """
    data, num = _excerpt(work, pack), side_by_side(work.settings)
    context = multiprocessing.get_context(
        "spawn"
    )  # a process that trains is set up in ways that the caller's must not be
    try:
        with ProcessPoolExecutor(num, context, _meet, (context.Barrier(num),)) as pool:
            first, *others = pool.map(_measure, [work] * num, [data] * num)
    except BrokenProcessPool as error:
        raise ClusterError(
            f"the processes that measure must live, got one of {num} that died, perhaps for want of memory; lower lanes.num or "
            "lanes.cohort_size, or use a machine with more memory"
        ) from error
    return sum(others, first)


def _meet(barrier: Any) -> None:  # noqa: ANN401 - multiprocessing's barriers have no public type
    """Wait for the others; who comes too late is measured alone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(threading.BrokenBarrierError):
        barrier.wait(_MEET_S)


def _end_with_parent() -> None:
    """A process of an executor would otherwise wait for work for ever when its parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _excerpt(work: Work, pack: Pack) -> ResidentBatches:
    """Some of the task's images, on the CPU."""
    batch = max(work.student.batch_size, work.teacher.batch_size)
    task = replace(
        work.task, train=work.task.train[: _TRAIN_BATCHES * batch], valid=work.task.valid[:_VALID_IMAGES], test=()
    )
    return ResidentBatches.of(pack, task)


def _measure(work: Work, data: ResidentBatches) -> Samples:
    """Everything, one after the other, in this process."""
    keep_freed_memory()
    compute_on(work.settings.threads)
    return _Bench(work, data).samples()


class _Bench:
    """One process's measurements."""

    def __init__(self, work: Work, data: ResidentBatches) -> None:
        self._work = work
        self._device = work.settings.device
        parts = {
            name: (images.to(self._device), labels.to(self._device)) for name, (images, labels) in data.parts.items()
        }
        self._data = replace(data, device=self._device, parts=parts)
        self._format = work.settings.layout
        self._run = replace(teacher_run(data.task, get_space(work.space)), recipe=_endless(work.teacher))
        network = build(self._run.student, data.task.num_classes, generator("probe"))
        self._teacher = Teacher(self._run.id, self._run.student, network.state_dict(), 0.0)

    def samples(self) -> Samples:
        size = min(Sizing.first(self._work.settings.cohort_size).size, max(1, len(self._work.students)))
        share_s = self._work.seconds / (len(QUANTILES) + 1)
        found = self._cohort([self._run], None, share_s)
        cohorts = [found]
        for students in _cohorts(self._work.students, size):
            recipe = replace(_endless(self._work.student), loss="ce")  # the teacher's pass is measured apart
            runs = [Run(self._data.task.id, self._teacher.id, student, recipe) for student in students]
            cohorts.append(self._cohort(runs, self._teacher, share_s))
        return replace(
            sum(cohorts[2:], cohorts[1]) if len(cohorts) > 1 else replace(found, steps=()),
            teacher_steps=found.steps,
            teacher_pass=self._teacher_pass(),
            valid=tuple(point for cohort in cohorts for point in cohort.valid),
        )

    def _cohort(self, runs: Sequence[Run], teacher: Teacher | None, seconds: float) -> Samples:
        """Steps of one cohort for at most about so many seconds; until the first look it warms up, which does not count."""
        began = time.perf_counter()
        cohort = Cohort(
            runs,
            self._data,
            teacher,
            yield_every=_LOOK[self._device.type],
            memory_format=self._format,
        )
        build_s = (time.perf_counter() - began) / len(runs)
        macs = sum(self._macs(run.student) for run in runs) / len(runs)
        steps: list[Point] = []
        last: tuple[float, int] | None = None
        for progress in cohort.train():
            now = time.perf_counter()
            if last is None:
                began = now
            else:
                steps.append((macs, (now - last[0]) / (progress.step - last[1]) / len(runs)))
            last = now, progress.step
            if len(steps) >= _MOST_LOOKS or (len(steps) >= 2 and now - began > seconds):
                break
        saving = time.perf_counter()
        states = [cohort.state(run.id) for run in runs]
        save_s = (time.perf_counter() - saving) / len(runs)
        return Samples(
            size=len(runs),
            steps=tuple(steps),
            teacher_steps=(),
            teacher_pass=(),
            valid=self._valid([run.student for run in runs]),
            build=(build_s,),
            save=(save_s,),
            state_bytes=max(map(len, states)),
        )

    def _valid(self, students: Sequence[Student]) -> tuple[Point, ...]:
        networks = [build(student, self._data.task.num_classes).to(self._device).eval() for student in students]
        for network in networks:
            network.to(memory_format=self._format)  # type: ignore[call-overload]  # missing in its stubs
        macs = sum(map(self._macs, students)) / len(students)
        images = len(students) * self._data.num_images("valid")
        took = [self._timed(lambda: evaluate(networks, self._data, "valid", self._format)) for _ in range(4)]
        return tuple((macs, seconds / images) for seconds in took[2:])  # the first ones warm up

    def _teacher_pass(self) -> tuple[float, ...]:
        network = self._teacher.network(self._data.task.num_classes, self._device)
        network.to(memory_format=self._format)  # type: ignore[call-overload]  # missing in its stubs
        images, _ = self._data.train_epoch(self._work.student, 0, 0).batch(0)
        batch = images.contiguous(memory_format=self._format)
        with torch.no_grad():
            return tuple(self._timed(lambda: network(batch)) for _ in range(4))[1:]

    def _timed(self, call: Any) -> float:  # noqa: ANN401 - anything that may be called
        began = time.perf_counter()
        call()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - began

    def _macs(self, student: Student) -> int:
        return count_macs(student, self._data.task.resolution, self._data.task.num_classes)


def _endless(recipe: Recipe) -> Recipe:
    """The same steps for ever, without an evaluation between them and without learning anything."""
    return replace(recipe, epochs=10**6, eval_every=10**6, lr=1e-12)


def _cohorts(students: Sequence[Student], size: int) -> list[Sequence[Student]]:
    """Distinct students that stand side by side around the quantiles."""
    starts = [round(quantile * (len(students) - size)) for quantile in QUANTILES]
    return [students[start : start + size] for start in dict.fromkeys(starts)] if students else []
