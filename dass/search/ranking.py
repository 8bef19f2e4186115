"""The order of scored students, and those that no other one beats in both accuracy and cost."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dass.records import Student


@dataclass(frozen=True)
class Candidate:
    """A scored student and its cost; a higher score is better, NaN is none."""

    student: Student
    score: float
    macs: int
    params: int


def rank(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best score first, NaN last; ties go to fewer MACs, then fewer parameters, then the student's key as text."""
    return sorted(candidates, key=_order)


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those than which none has fewer MACs without a lower score, by rising MACs and so by rising score.

    Of several with equal MACs and score the first in rank stays. NaN scores are left out.
    """
    frontier: list[Candidate] = []
    scored = (candidate for candidate in candidates if not math.isnan(candidate.score))
    for candidate in sorted(scored, key=lambda each: (each.macs, *_order(each))):
        if not frontier or candidate.score > frontier[-1].score:
            frontier.append(candidate)
    return frontier


def _order(candidate: Candidate) -> tuple[float, int, int, str]:
    score = -math.inf if math.isnan(candidate.score) else candidate.score
    return -score, candidate.macs, candidate.params, candidate.student.key
