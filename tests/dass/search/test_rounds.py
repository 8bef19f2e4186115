from collections.abc import Sequence

import pytest
import torch

from dass.records import Student
from dass.search.budget import Budget
from dass.search.rounds import Rounds, cut
from dass.search.strategies import Strategy, StrategyName, make_strategy
from dass.spaces import get_space

SPACE = get_space("smoke")


def students(num: int) -> list[Student]:
    return SPACE.sample(num, torch.Generator().manual_seed(0))


def strategy(name: StrategyName) -> Strategy:
    return make_strategy(name, SPACE, Budget(), 16, 3, seed=0)


def value(student: Student) -> float:
    return float(sum(map(sum, student.widths)))


def asked_one_by_one(name: StrategyName, num: int, batch: int) -> list[Student]:
    """What a plain loop of ask and tell asks for."""
    plain, found = strategy(name), list[Student]()
    while len(found) < num and (asked := plain.ask(min(batch, num - len(found)))):
        plain.tell(asked, [value(student) for student in asked])
        found += asked
    return found


class TestCut:
    @pytest.mark.parametrize(
        ("num", "most", "sizes"),
        [
            (1, 250, [1]),
            (10, 3, [2, 3, 2, 3]),
            (99, 250, [99]),
            (100, 250, [50, 50]),
            (101, 250, [50, 51]),
            (240, 80, [80, 80, 80]),
        ],
    )
    def test_chunks_are_as_few_and_as_even_as_can_be(self, num: int, most: int, sizes: list[int]) -> None:
        assert [len(chunk) for chunk in cut(students(num), most)] == sizes

    def test_every_student_is_in_one_chunk_and_neighbours_share_prefixes(self) -> None:
        chunks = cut(students(200), 30)
        flat = [student for chunk in chunks for student in chunk]
        assert flat == sorted(students(200))

    def test_the_order_of_the_students_does_not_matter(self) -> None:
        assert cut(students(150), 40) == cut(students(150)[::-1], 40)


class TestRounds:
    @pytest.mark.parametrize("name", ["random", "evolution"])
    @pytest.mark.parametrize("num_out", [1, 3, 7])
    def test_whatever_comes_back_first_the_proposals_are_those_of_a_plain_loop(
        self, name: StrategyName, num_out: int
    ) -> None:
        rounds, out, found = (
            Rounds(strategy(name), 130, batch=40, chunk=12),
            list[tuple[Student, ...]](),
            list[Student](),
        )
        while not rounds.is_done:
            while len(out) < num_out and (chunk := rounds.take()) is not None:
                out.append(chunk)
            if out:
                last = out.pop()
                found += [student for batch in rounds.put(last, [*map(value, last)]) for student in batch.students]
        assert found == asked_one_by_one(name, 130, 40)

    def test_only_a_strategy_that_learns_waits(self) -> None:
        def num_taken(name: StrategyName) -> int:
            rounds = Rounds(strategy(name), 120, batch=40, chunk=10)
            return sum(1 for _ in iter(rounds.take, None))

        assert (num_taken("random"), num_taken("evolution")) == (12, 4)

    def test_a_chunk_given_back_is_the_next(self) -> None:
        rounds = Rounds(strategy("evolution"), 40, batch=40, chunk=10)
        first = rounds.take()
        assert first is not None
        rounds.take()
        rounds.give_back(first)
        assert rounds.take() == first

    @pytest.mark.parametrize("name", ["random", "evolution"])
    def test_what_is_recalled_has_no_chunks_and_changes_nothing(self, name: StrategyName) -> None:
        expected = asked_one_by_one(name, 120, 40)

        def recall(number: int, asked: Sequence[Student]) -> list[float] | None:
            assert list(asked) == expected[40 * number : 40 * (number + 1)]
            return None if number == 1 else [value(student) for student in asked]

        rounds, fresh = Rounds(strategy(name), 120, 40, 50, recall), list[Student]()
        while chunk := rounds.take():
            fresh += [each for batch in rounds.put(chunk, [*map(value, chunk)]) for each in batch.students]
        assert rounds.is_done
        assert fresh == expected[40:80]

    def test_it_ends_when_the_space_does(self) -> None:
        rounds, num = Rounds(strategy("random"), 10_000, 100, 50), 0
        while chunk := rounds.take():
            num += len(chunk)
            rounds.put(chunk, [0.0] * len(chunk))
        assert rounds.is_done
        assert num == SPACE.size
