"""The short-KD proxy: students are distilled for a few epochs, and the best accuracy on valid is their score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from dass.baselines.scorers import to_scores
from dass.data.batches import ResidentBatches
from dass.kd.cohort import Cohort, Ended
from dass.kd.logits import TeacherLogits
from dass.kd.teacher import Teacher
from dass.records import Recipe, Run, Status, Student

COHORT = 16  # students that train in lockstep


@dataclass(frozen=True, eq=False)
class ShortKDScorer:
    """Distils students under `recipe`; all students of one call share the passes of the teacher.

    The learning rate takes its whole cosine in the epochs that there are. A student that diverges has no score.
    """

    data: ResidentBatches
    teacher: Teacher
    recipe: Recipe
    seed: int = 0
    cohort: int = COHORT

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,): best top-1 accuracy on valid, in percent."""
        logits = TeacherLogits()
        distinct = list(dict.fromkeys(students))
        values: dict[Student, float] = {}
        for start in range(0, len(distinct), self.cohort):
            values |= self._distil(distinct[start : start + self.cohort], logits)
        return to_scores(values[student] for student in students)

    def to(self, device: torch.device) -> "ShortKDScorer":
        """The same scorer, training on this device."""
        return replace(self, data=self.data.to(device))

    def _distil(self, students: Sequence[Student], logits: TeacherLogits) -> dict[Student, float]:
        runs = [Run(self.data.task.id, self.teacher.id, student, self.recipe, self.seed) for student in students]
        cohort = Cohort(runs, self.data, self.teacher, logits=logits)
        return {ended.run.student: _best_pct(ended) for progress in cohort.train() for ended in progress.ended}


def _best_pct(ended: Ended) -> float:
    best = ended.result.best_accuracy_pct
    return best if ended.result.status is Status.FINISHED and best is not None else math.nan
