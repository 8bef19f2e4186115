"""The students that a found one must beat: a random one and the largest one in the budget."""

from collections.abc import Sequence

import torch

from dass.cost import count_macs, count_params
from dass.records import Student
from dass.search.budget import Budget
from dass.search.ranking import Candidate
from dass.spaces.space import SearchSpace


def random_student(candidates: Sequence[Candidate], rng: torch.Generator) -> Student:
    """One of the scored candidates, each with the same chance, whatever its score."""
    ordered = sorted(candidate.student for candidate in candidates)
    return ordered[int(torch.randint(len(ordered), (1,), generator=rng))]


def largest_student(
    space: SearchSpace, budget: Budget, candidates: Sequence[Candidate], resolution: int, num_classes: int
) -> Student:
    """A large student in the budget: the largest of at least one candidate, then upwards one move at a time.

    Each move goes to the admitted neighbour with the most MACs, so no neighbour of the result is admitted and larger; a
    student further away may still be.
    """

    def macs_of(student: Student) -> int:
        return count_macs(student, resolution, num_classes)

    def is_admitted(student: Student) -> bool:
        return budget.admits(macs_of(student), count_params(student, num_classes))

    current = max((candidate.macs, candidate.student) for candidate in candidates)[1]
    while True:
        larger = [
            student for student in filter(is_admitted, space.neighbours(current)) if macs_of(student) > macs_of(current)
        ]
        if not larger:
            return current
        current = max(larger, key=lambda student: (macs_of(student), student))
