"""What one lane does with its time and its device, told to Prometheus while it works."""

import math
import time
from collections.abc import Iterator
from typing import Literal

from cluster import metrics
from cluster.memory import MemoryMeter
from dass.kd.cohort import Cohort, Progress
from dass.records import Status, Task

MEMORY_EVERY_S = 5.0  # reading it takes up to a millisecond

Activity = Literal["training", "waiting", "other"]


class LaneMeter:
    """Splits all the time of a lane, from its making on, into activities.

    Args:
        lane: the lane's name.
    """

    def __init__(self, lane: str) -> None:
        self._lane = lane
        self._clock = time.monotonic()
        self._memory_at = -math.inf

    def spent(self, activity: Activity) -> None:
        """All the time since the last call, or since the making, went into this."""
        now = time.monotonic()
        metrics.LANE_SECONDS.add(now - self._clock, lane=self._lane, activity=activity)
        self._clock = now

    def train(self, cohort: Cohort, task: Task, memory: MemoryMeter) -> Iterator[Progress]:
        """What `cohort.train` yields; the time that it takes is counted as training, the time between as other."""
        for status in Status:
            metrics.RUNS_ENDED.start(task=task.name, status=str(status))
        step = cohort.step
        progresses = cohort.train()
        while True:
            self.spent("other")
            try:
                progress = next(progresses, None)
            finally:
                self.spent("training")
            if progress is None:
                return
            students = len(cohort.runs) + len(progress.ended)
            self._count(task.name, (progress.step - step) * students, cohort.images_per_step)
            step = progress.step
            metrics.COHORT_STUDENTS.set(students, lane=self._lane)
            self._tell_memory(memory)
            yield progress

    def ended(self, task: str, status: Status) -> None:
        """The record of a run of the task was written."""
        metrics.RUNS_ENDED.add(task=task, status=str(status))

    def _count(self, task: str, student_steps: int, batch_images: int) -> None:
        metrics.STUDENT_STEPS.add(student_steps, task=task)
        metrics.STUDENT_IMAGES.add(student_steps * batch_images, task=task)

    def _tell_memory(self, memory: MemoryMeter) -> None:
        if time.monotonic() - self._memory_at < MEMORY_EVERY_S:
            return
        self._memory_at = time.monotonic()
        use = memory.read()
        metrics.MEMORY_PEAK.set(use.peak_bytes, lane=self._lane)
        if math.isfinite(use.room_bytes):
            metrics.MEMORY_LIMIT.set(use.room_bytes, lane=self._lane)
