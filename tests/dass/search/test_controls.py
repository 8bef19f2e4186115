from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.cost import count_macs, count_params
from dass.records import Student
from dass.search.budget import Budget
from dass.search.controls import largest_student, random_student
from dass.search.ranking import Candidate
from dass.spaces import get_space

SPACE = get_space("smoke")
RESOLUTION, NUM_CLASSES = 32, 10
EVERYTHING = SPACE.sample(256, torch.Generator().manual_seed(0))


def macs(student: Student) -> int:
    return count_macs(student, RESOLUTION, NUM_CLASSES)


def candidate(student: Student, score: float = 0.0) -> Candidate:
    return Candidate(student, score, macs(student), count_params(student, NUM_CLASSES))


def admits(budget: Budget, student: Student) -> bool:
    return budget.admits(macs(student), count_params(student, NUM_CLASSES))


class TestRandomStudent:
    def test_it_is_a_candidate_and_the_generator_decides_which(self) -> None:
        candidates = [candidate(student) for student in EVERYTHING[:50]]
        drawn = [random_student(candidates, torch.Generator().manual_seed(seed)) for seed in range(20)]
        assert set(drawn) <= set(EVERYTHING[:50])
        assert len(set(drawn)) > 10
        assert drawn[3] == random_student(candidates, torch.Generator().manual_seed(3))

    def test_neither_order_nor_scores_matter(self) -> None:
        ranked = [candidate(student, score) for score, student in enumerate(EVERYTHING[:50])]
        turned = [candidate(student) for student in EVERYTHING[49::-1]]
        for seed in range(5):
            one, other = (random_student(given, torch.Generator().manual_seed(seed)) for given in (ranked, turned))
            assert one == other

    def test_every_candidate_has_about_the_same_chance(self) -> None:
        rng = torch.Generator().manual_seed(0)
        candidates = [
            candidate(student, score=score) for student, score in zip(EVERYTHING[:4], (1e9, 0, 1, 2), strict=True)
        ]
        counts = Counter(random_student(candidates, rng) for _ in range(2000))
        assert all(counts[each.student] == pytest.approx(500, abs=100) for each in candidates)


class TestLargestStudent:
    def test_without_a_budget_it_is_the_largest_of_the_space(self) -> None:
        assert largest_student(SPACE, Budget(), [candidate(SPACE.smallest)], RESOLUTION, NUM_CLASSES) == SPACE.largest

    @settings(max_examples=40)
    @given(share=st.floats(0, 1), seed=st.integers(0, 2**31), on_params=st.booleans())
    def test_it_is_admitted_and_no_move_within_the_budget_enlarges_it(
        self, share: float, seed: int, on_params: bool
    ) -> None:
        limit = int(macs(SPACE.smallest) + share * (macs(SPACE.largest) - macs(SPACE.smallest)))
        budget = Budget(limit, count_params(EVERYTHING[seed % 256], NUM_CLASSES) if on_params else None)
        admitted = [student for student in EVERYTHING if admits(budget, student)]
        if not admitted:
            return
        picks = torch.randint(len(admitted), (10,), generator=torch.Generator().manual_seed(seed)).tolist()
        candidates = [candidate(admitted[index]) for index in picks]
        found = largest_student(SPACE, budget, candidates, RESOLUTION, NUM_CLASSES)
        SPACE.check(found)
        assert admits(budget, found)
        assert macs(found) >= max(each.macs for each in candidates)
        assert not any(admits(budget, other) and macs(other) > macs(found) for other in SPACE.neighbours(found))

    def test_scores_do_not_matter(self) -> None:
        budget = Budget((macs(SPACE.smallest) + macs(SPACE.largest)) // 2)
        students = [student for student in EVERYTHING if admits(budget, student)][:20]
        scored = [candidate(student, -macs(student)) for student in students]
        plain = [candidate(student) for student in students[::-1]]
        one, other = (largest_student(SPACE, budget, given, RESOLUTION, NUM_CLASSES) for given in (scored, plain))
        assert one == other
