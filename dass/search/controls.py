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


def largest_student(space: SearchSpace, budget: Budget, resolution: int, num_classes: int) -> Student:
    """A student of the most MACs that the budget admits, found by climbing from the smallest, one move at a time.

    Each move goes to the admitted neighbour with the most MACs, so no neighbour of the result is admitted and larger.
    """

    def cost(student: Student) -> tuple[int, int]:
        return count_macs(student, resolution, num_classes), count_params(student, num_classes)

    current = space.smallest
    while True:
        larger = [
            (cost(student), student)
            for student in space.neighbours(current)
            if budget.admits(*cost(student)) and cost(student)[0] > cost(current)[0]
        ]
        if not larger:
            return current
        current = max(larger)[1]
