"""The order of scored students, and those that no other one beats in both accuracy and cost."""

import hashlib
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dass.records import Student

KEEP_ALL = 20_000  # candidates, about 4 MB as JSON: up to here a ranking has everything
KEEP_BEST = 10_000  # of more than that; the frontier is kept beside them
SAMPLE = 1000  # drawn from all, to stand for those that are not kept
COLUMNS = ("student", "predicted %", "MMACs", "k params")
"""What a table shows of a candidate."""


@dataclass(frozen=True)
class Candidate:
    """A scored student and its cost; a higher score is better, NaN and -inf are none."""

    student: Student
    score: float
    macs: int
    params: int


def to_row(candidate: Candidate) -> tuple[str, ...]:
    """The candidate under COLUMNS."""
    cost = f"{candidate.macs / 1e6:.2f}", f"{candidate.params / 1e3:.0f}"
    return candidate.student.key, f"{candidate.score:.1f}", *cost


def rank(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best score first, those without one last; ties go to fewer MACs, then fewer parameters, then the student's key as text."""
    return sorted(candidates, key=_order)


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those than which none has fewer MACs without a lower score, by rising MACs and so by rising score.

    Of several with equal MACs and score the first in rank stays. Those without a score are left out.
    """
    frontier: list[Candidate] = []
    scored = (candidate for candidate in candidates if candidate.score > -math.inf)
    for candidate in sorted(scored, key=lambda each: (each.macs, *_order(each))):
        if not frontier or candidate.score > frontier[-1].score:
            frontier.append(candidate)
    return frontier


class Ranking:
    """The ranking of a search of any length in bounded memory; the order in which candidates are added does not matter.

    Up to KEEP_ALL candidates nothing is left out. Of more, the KEEP_BEST best and the frontier stay, which is exact:
    whatever is among the best of all, or on the frontier of all, is so among those seen before as well.
    """

    def __init__(self) -> None:
        self.scored = 0
        self._kept: list[Candidate] = []
        self._drawn: list[tuple[bytes, Candidate]] = []

    def add(self, candidates: Sequence[Candidate]) -> None:
        """Take in more candidates, none of them for a second time."""
        self.scored += len(candidates)
        self._kept += candidates
        if len(self._kept) > KEEP_ALL:
            self._kept = self._reduced()
        drawn = [(hashlib.sha256(each.student.key.encode()).digest(), each) for each in candidates]
        self._drawn = heapq.nsmallest(SAMPLE, self._drawn + drawn, key=lambda pair: pair[0])

    @property
    def is_complete(self) -> bool:
        """Whether nothing was left out."""
        return self.scored <= KEEP_ALL

    @property
    def ranked(self) -> list[Candidate]:
        """What is kept, best first."""
        return rank(self._kept if self.is_complete else self._reduced())

    @property
    def sample(self) -> list[Candidate]:
        """At most SAMPLE of all that were added, each with the same chance: those whose keys hash lowest."""
        return [candidate for _, candidate in self._drawn]

    def _reduced(self) -> list[Candidate]:
        ordered = rank(self._kept)
        best = ordered[:KEEP_BEST]
        return best + [each for each in pareto(self._kept) if _order(each) > _order(best[-1])]


def _order(candidate: Candidate) -> tuple[float, int, int, str]:
    score = -math.inf if math.isnan(candidate.score) else candidate.score
    return -score, candidate.macs, candidate.params, candidate.student.key
