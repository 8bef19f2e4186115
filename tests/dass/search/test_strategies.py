import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.cost import count_macs, count_params
from dass.errors import BudgetError, ConfigError
from dass.records import Student
from dass.search.budget import Budget
from dass.search.strategies import Strategy, StrategyName, make_strategy
from dass.spaces import PRESETS

NAMES: tuple[StrategyName, ...] = ("random", "evolution")
SMOKE, PAPER = PRESETS["smoke"], PRESETS["paper5"]
both = pytest.mark.parametrize("name", NAMES)


def strategy(name: StrategyName, budget: Budget | None = None, space: str = "smoke", seed: int = 0) -> Strategy:
    return make_strategy(name, PRESETS[space], budget or Budget(), 64, 10, seed)


def macs(student: Student) -> float:
    return float(count_macs(student, 64, 10))


def ask_all(asked: Strategy, num: int, value: Callable[[Student], float] = macs, batch: int = 50) -> list[Student]:
    found: list[Student] = []
    while len(found) < num and (students := asked.ask(min(batch, num - len(found)))):
        asked.tell(students, [value(student) for student in students])
        found += students
    return found


def everything(space: str, budget: Budget) -> set[Student]:
    students = PRESETS[space].sample(PRESETS[space].size, torch.Generator())
    return {each for each in students if budget.admits(count_macs(each, 64, 10), count_params(each, 10))}


class TestEveryStrategy:
    @both
    @pytest.mark.parametrize("space", ["smoke", "paper5"])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.03, 0.2, 1.0])
    def test_all_students_are_in_the_space_and_the_budget_and_none_comes_twice(
        self, name: StrategyName, space: str, share: float
    ) -> None:
        least, most = macs(PRESETS[space].smallest), macs(PRESETS[space].largest)
        budget = Budget(max_macs=int(least + share * (most - least)))
        found = ask_all(strategy(name, budget, space), 150)
        assert found
        assert len(found) == len(set(found))
        for student in found:
            PRESETS[space].check(student)
            assert macs(student) <= budget.max_macs  # type: ignore[operator]

    @both
    @pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
    def test_a_small_space_is_asked_to_the_last_student_and_then_no_more(
        self, name: StrategyName, share: float
    ) -> None:
        least, most = macs(SMOKE.smallest), macs(SMOKE.largest)
        budget = Budget(max_macs=int(least + share * (most - least)))
        asked = strategy(name, budget)
        assert set(ask_all(asked, 1000)) == everything("smoke", budget)
        assert asked.ask(5) == []

    @both
    def test_a_limit_on_parameters_holds_too(self, name: StrategyName) -> None:
        budget = Budget(max_params=2_000_000)
        found = ask_all(strategy(name, budget, "paper5"), 100)
        assert len(found) == 100
        assert max(count_params(student, 10) for student in found) <= 2_000_000

    @both
    def test_a_budget_just_above_the_smallest_student_still_has_candidates(self, name: StrategyName) -> None:
        budget = Budget(max_macs=int(macs(PAPER.smallest) * 1.1))
        assert len(ask_all(strategy(name, budget, "paper5"), 300)) == 300

    @both
    def test_a_budget_below_the_smallest_student_is_refused(self, name: StrategyName) -> None:
        with pytest.raises(BudgetError):
            strategy(name, Budget(max_macs=1000))

    @both
    @settings(max_examples=10)
    @given(seed=st.integers(0, 2**31), share=st.floats(0.01, 1))
    def test_equal_seeds_and_scores_ask_alike(self, name: StrategyName, seed: int, share: float) -> None:
        budget = Budget(max_macs=int(macs(SMOKE.smallest) + share * (macs(SMOKE.largest) - macs(SMOKE.smallest))))
        one, other = (ask_all(strategy(name, budget, seed=seed), 60, batch=20) for _ in range(2))
        assert one == other

    @both
    def test_other_seeds_ask_otherwise(self, name: StrategyName) -> None:
        assert ask_all(strategy(name, seed=0), 20) != ask_all(strategy(name, seed=1), 20)

    @both
    def test_students_told_from_an_earlier_search_are_not_asked_again(self, name: StrategyName) -> None:
        earlier = ask_all(strategy(name, seed=0), 100)
        resumed = strategy(name, seed=0)
        resumed.tell(earlier, [macs(student) for student in earlier])
        rest = ask_all(resumed, 1000)
        assert not set(rest) & set(earlier)
        assert len(rest) == SMOKE.size - 100

    @both
    def test_scores_must_pair_with_students(self, name: StrategyName) -> None:
        asked = strategy(name)
        with pytest.raises(ValueError, match="shorter"):
            asked.tell(asked.ask(3), [1.0, 2.0])

    def test_an_unknown_name_lists_the_known(self) -> None:
        unknown: Any = "annealing"
        with pytest.raises(ConfigError, match="random, evolution, got 'annealing'"):
            strategy(unknown)


class TestRandomSearch:
    @pytest.mark.parametrize("share", [0.3, 1.0])
    def test_told_an_earlier_search_it_asks_what_that_would_have_asked_next(self, share: float) -> None:
        budget = Budget(max_macs=int(share * macs(PAPER.largest)))
        whole = ask_all(strategy("random", budget, "paper5"), 300)
        resumed = strategy("random", budget, "paper5")
        resumed.tell(whole[:150], [macs(student) for student in whole[:150]])
        assert ask_all(resumed, 150) == whole[150:]

    def test_without_a_budget_it_asks_what_the_sampler_draws(self) -> None:
        found = ask_all(strategy("random", space="paper5"), 2000)
        deep = sum(len(student.widths[0]) == 5 for student in found) / len(found)
        assert deep == pytest.approx(0.2, abs=0.04)

    def test_the_stratified_sampler_reaches_more_macs_than_the_uniform(self) -> None:
        highest = {
            sampler: max(macs(student) for student in ask_all(asked, 300))
            for sampler in ("uniform", "macs_stratified")
            if (asked := make_strategy("random", PAPER, Budget(), 64, 10, 0, sampler=sampler))
        }
        assert highest["macs_stratified"] > 1.2 * highest["uniform"]


class TestEvolution:
    def test_it_finds_better_students_than_random_search_at_the_same_price(self) -> None:
        def value(student: Student) -> float:
            return -abs(macs(student) - 1.2e9)  # far beyond what uniform draws reach

        best = {name: max(map(value, ask_all(strategy(name, space="paper5"), 600, value, 500))) for name in NAMES}
        assert best["evolution"] > best["random"] + 1e8

    def test_after_a_generation_children_resemble_the_best(self) -> None:
        asked = strategy("evolution", space="paper5")
        ask_all(asked, 300)
        first = sum(map(macs, ask_all(strategy("random", space="paper5"), 100))) / 100
        assert sum(map(macs, asked.ask(100))) / 100 > 1.3 * first

    def test_it_gives_at_most_one_generation_at_a_time(self) -> None:
        assert len(strategy("evolution", space="paper5").ask(500)) == 100

    @pytest.mark.parametrize("none", [math.nan, -math.inf])
    def test_students_without_a_score_never_make_parents(self, none: float) -> None:
        told, untold = strategy("evolution", space="paper5"), strategy("evolution", space="paper5")
        told.tell(told.ask(50), [none] * 50)
        untold.ask(50)
        assert told.ask(50) == untold.ask(50)
