"""What there is to score, and in what order it is learnt: the part of a search that knows nothing of who scores.

A strategy is asked for batches; each is cut into *chunks*, and a chunk is scored by one call of the scorer. A score's
last bits depend on the students that share the call (other shapes are other kernels), so the cut depends on the batch
alone and never on how many score at the same time: in this process or on a cluster, the same chunks give the same bits.

Scores come back in any order and are told to the strategy batch by batch in the order asked. A strategy that learns is
asked for its next batch only then; one that does not is asked ahead.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dass.records import Student
from dass.search.strategies import Strategy

MIN_HALVED = 100  # a batch of so many makes two chunks at least: a generation of evolution keeps two CPUs busy

Chunk = tuple[Student, ...]  # of students that share prefixes, see `cut`
Scores = dict[Student, float]


@dataclass
class Batch:
    """Students as they were asked for at once, and their scores so far."""

    number: int
    students: tuple[Student, ...]
    scores: Scores = field(default_factory=dict)
    is_recalled: bool = False  # scored by an earlier search

    @property
    def is_scored(self) -> bool:
        """Whether each has its score."""
        return len(self.scores) == len(self.students)

    @property
    def in_order(self) -> list[float]:
        """The scores in the order of `students`; all must be there."""
        return [self.scores[student] for student in self.students]


def cut(students: Sequence[Student], most: int) -> list[Chunk]:
    """Chunks of at most `most` students, as few and as even as that allows; neighbours share prefixes (see Embedder)."""
    if len(students) >= MIN_HALVED:
        most = min(most, (len(students) + 1) // 2)
    ordered = sorted(students, key=lambda student: student.widths)
    num = -(-len(ordered) // most)
    ends = [index * len(ordered) // num for index in range(num + 1)]
    return [tuple(ordered[start:end]) for start, end in pairwise(ends)]


def _forget(number: int, students: Sequence[Student]) -> None:  # noqa: ARG001 - the signature of a recall
    return None


class Rounds:
    """A search under way: hands out chunks, takes their scores, and tells them to the strategy.

    Args:
        strategy: who proposes.
        num: students to score.
        batch: students asked of the strategy at once.
        chunk: the most students in a chunk.
        recall: the scores of a batch (its number and students) where they are known; such a batch has no chunks.
    """

    def __init__(
        self,
        strategy: Strategy,
        num: int,
        batch: int,
        chunk: int,
        recall: Callable[[int, Sequence[Student]], Sequence[float] | None] = _forget,
    ) -> None:
        self._strategy, self._recall = strategy, recall
        self._left, self._batch, self._chunk = num, batch, chunk
        self._num_asked = 0
        self._open: deque[Batch] = deque()  # asked and not told yet, the oldest first
        self._waiting: deque[tuple[Batch, Chunk]] = deque()
        self._out: dict[Chunk, Batch] = {}

    @property
    def is_done(self) -> bool:
        """Whether everything is scored and told; `take` finds out that a strategy has no more."""
        return not (self._left or self._open)

    def take(self) -> Chunk | None:
        """A chunk to score; None when there is none, or none before scores that are out come back."""
        while not self._waiting and self._left and not (self._strategy.learns and self._open):
            self._ask()
            self._tell()
        if not self._waiting:
            return None
        batch, chunk = self._waiting.popleft()
        self._out[chunk] = batch
        return chunk

    def give_back(self, chunk: Chunk) -> None:
        """Let a chunk that was taken be taken again, before all others."""
        self._waiting.appendleft((self._out.pop(chunk), chunk))

    def put(self, chunk: Chunk, scores: Sequence[float]) -> list[Batch]:
        """Take in a chunk's scores; the batches that could be told now and were not recalled, in order."""
        self._out.pop(chunk).scores.update(zip(chunk, scores, strict=True))
        return [batch for batch in self._tell() if not batch.is_recalled]

    def _tell(self) -> list[Batch]:
        """Tell the strategy all that it can be told; returns those batches, in order."""
        told = []
        while self._open and self._open[0].is_scored:
            batch = self._open.popleft()
            self._strategy.tell(batch.students, batch.in_order)
            told.append(batch)
        return told

    def _ask(self) -> None:
        students = tuple(self._strategy.ask(min(self._batch, self._left)))
        if not students:
            self._left = 0
            return
        batch = Batch(self._num_asked, students)
        self._num_asked += 1
        self._left -= len(students)
        self._open.append(batch)
        known = self._recall(batch.number, students)
        if known is None:
            self._waiting.extend((batch, chunk) for chunk in cut(students, self._chunk))
        else:
            batch.scores = dict(zip(students, known, strict=True))
            batch.is_recalled = True
