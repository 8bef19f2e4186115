"""Who proposes students: ask for some, tell their scores.

Every strategy keeps to the budget, never asks for a student twice, and depends on its seed and on what it was told
alone. Telling it scores from an earlier search, asked by whom ever, makes it go on from there; random search then asks
what the search that is continued would have asked, while the sampler still finds new students.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, Protocol, get_args

import torch

from dass.cost import count_macs, count_params
from dass.errors import ConfigError
from dass.records import Student
from dass.search.budget import Budget, check_feasible
from dass.seeding import generator
from dass.spaces.space import Sampler, SearchSpace

StrategyName = Literal["random", "evolution"]

MIN_DRAW = 64  # students per draw of the sampler, so that its yield is judged on enough of them
MIN_YIELD = 0.05  # a draw with a smaller share of new students in the budget is the sampler's last
MAX_FAILURES = 2000  # children in a row without a new student in the budget
MUTATION_RATE = 0.1  # per decision


class Strategy(Protocol):
    """Proposes students and learns from their scores."""

    @property
    def learns(self) -> bool:
        """Whether what it asks depends on scores; one that does not may be asked again before it was told."""

    def ask(self, num: int) -> list[Student]:
        """At most `num` students of the budget, never asked before; fewer, or none, when no more are found."""

    def tell(self, students: Sequence[Student], scores: Sequence[float]) -> None:
        """Learn the scores, higher is better, NaN is none. The students need not have been asked by this strategy."""


class _Proposals:
    """New students of the budget, until none are left to be found.

    Three sources, each used when the one before gives out: the space's sampler with rejection; children of students
    known to be in the budget, which find their way where nearly every draw is rejected; all their neighbours, so that
    nothing is left out that single moves within the budget can reach.

    Raises:
        BudgetError: the budget admits no student.
    """

    def __init__(
        self,
        space: SearchSpace,
        budget: Budget,
        resolution: int,
        num_classes: int,
        sampler: Sampler,
        rng: torch.Generator,
    ) -> None:
        check_feasible(budget, space, resolution, num_classes)
        self._space, self._budget, self._sampler, self._rng = space, budget, sampler, rng
        self._resolution, self._num_classes = resolution, num_classes
        self._seen: set[Student] = set()
        self._told: set[Student] = set()  # known from elsewhere, and not yet met again by the sampler
        self._admitted: list[Student] = [space.smallest]
        self._source = self._stream()

    def draw(self, num: int) -> list[Student]:
        """`num` new students, or as many as are left."""
        return list(islice(self._source, num))

    def accept(self, student: Student) -> bool:
        """Whether the student is in the budget and new; from now on it is not new."""
        if student in self._seen:
            return False
        macs = count_macs(student, self._resolution, self._num_classes)
        if not self._budget.admits(macs, count_params(student, self._num_classes)):
            return False
        self._seen.add(student)
        self._admitted.append(student)
        return True

    def know(self, student: Student) -> None:
        """Take a student asked by whom ever as known; the sampler's draw of it counts as if it were new."""
        if self.accept(student):
            self._told.add(student)

    def _stream(self) -> Iterator[Student]:
        yield from self._sampled()
        yield from filter(self.accept, [self._space.smallest])
        yield from self._bred()
        yield from self._neighbouring()

    def _sampled(self) -> Iterator[Student]:
        num, num_new = min(MIN_DRAW, self._space.size), MIN_DRAW
        while num_new >= MIN_YIELD * num:
            num_new = 0
            for student in self._space.sample(num, self._rng, self._sampler):
                if student in self._told:
                    self._told.remove(student)
                    num_new += 1
                elif self.accept(student):
                    num_new += 1
                    yield student

    def _bred(self) -> Iterator[Student]:
        failures = 0
        while failures < MAX_FAILURES:
            student = breed(self._space, self._admitted, self._rng)
            failures += 1
            if self.accept(student):
                failures = 0
                yield student

    def _neighbouring(self) -> Iterator[Student]:
        for student in self._admitted:  # grows while it is walked
            yield from filter(self.accept, self._space.neighbours(student))


def breed(space: SearchSpace, parents: Sequence[Student], rng: torch.Generator) -> Student:
    """A child of one parent by mutation or of two by crossing, with the same chance; it may equal a parent."""
    left, right, coin = torch.randint(2**62, (3,), generator=rng).tolist()
    parent = parents[left % len(parents)]
    if coin % 2:
        return space.mutate(parent, rng, MUTATION_RATE)
    return space.cross(parent, parents[right % len(parents)], rng)


class RandomSearch:
    """Random students of the budget, as the space's sampler draws them; learns nothing."""

    learns = False

    def __init__(self, proposals: _Proposals) -> None:
        self._proposals = proposals

    def ask(self, num: int) -> list[Student]:
        """At most `num` students; see `Strategy`."""
        return self._proposals.draw(num)

    def tell(self, students: Sequence[Student], scores: Sequence[float]) -> None:
        """Take the students as known, so that they are not asked again."""
        for student, _ in zip(students, scores, strict=True):
            self._proposals.know(student)


class Evolution:
    """Children of the best students told so far, by mutation or crossing; random students until any is told.

    At most one generation is given at a time. Where parents bring too few new children, random students fill it up.
    The numbers are the once-for-all finder's: generations of 100, the best quarter as parents, mutation rate 0.1.
    Differs: parents are the best of all generations, so a good student is never forgotten.
    """

    learns = True
    generation = 100
    num_parents = 25
    max_tries = 20  # per child wanted

    def __init__(self, proposals: _Proposals, space: SearchSpace, rng: torch.Generator) -> None:
        self._proposals, self._space, self._rng = proposals, space, rng
        self._parents: dict[Student, float] = {}  # best first

    def ask(self, num: int) -> list[Student]:
        """At most `num` students, and at most a generation; see `Strategy`."""
        num = min(num, self.generation)
        children = list(islice(self._children(self.max_tries * num), num))
        return children + self._proposals.draw(num - len(children))

    def tell(self, students: Sequence[Student], scores: Sequence[float]) -> None:
        """Keep the best of all students told as parents; one without a score, NaN or -inf, never becomes one."""
        told = dict(zip(students, scores, strict=True))
        for student in told:
            self._proposals.know(student)
        known = {student: score for student, score in (self._parents | told).items() if score > -math.inf}
        best = sorted(known.items(), key=lambda item: (-item[1], item[0].key))
        self._parents = dict(best[: self.num_parents])

    def _children(self, num_tries: int) -> Iterator[Student]:
        """The new ones in the budget among `num_tries` children."""
        parents = list(self._parents)
        for _ in range(num_tries if parents else 0):
            child = breed(self._space, parents, self._rng)
            if self._proposals.accept(child):
                yield child


def make_strategy(
    name: StrategyName,
    space: SearchSpace,
    budget: Budget,
    resolution: int,
    num_classes: int,
    seed: int,
    *,
    sampler: Sampler = "uniform",
) -> Strategy:
    """The strategy of this name. The resolution (pixels) and number of classes are those that costs are counted at.

    Raises:
        ConfigError: there is none of this name.
        BudgetError: the budget admits no student.
    """
    if name not in get_args(StrategyName):
        raise ConfigError(
            f"strategy must be one of {', '.join(get_args(StrategyName))}, got {name!r}; set search.strategy"
        )
    rng = generator("strategy", name, seed)
    proposals = _Proposals(space, budget, resolution, num_classes, sampler, rng)
    return RandomSearch(proposals) if name == "random" else Evolution(proposals, space, rng)
