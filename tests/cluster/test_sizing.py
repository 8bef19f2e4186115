import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sizing import FIRST_SIZE, LEAST_GAIN, MEMORY_SHARE, Measured, Pace, Sizing

ROOM = Measured(8, 10.0, 0, 0, math.inf)


def sizes(rate_of: Callable[[int], float], bound: int, num: int = 8, cohort: Measured = ROOM) -> list[int]:
    """The sizes of the first cohorts of a lane whose rate is a function of the size."""
    sizing, chosen = Sizing.first(bound), []
    for _ in range(num):
        chosen.append(sizing.size)
        sizing = sizing.after(replace(cohort, size=sizing.size, rate=rate_of(sizing.size)))
    return chosen


def test_the_size_doubles_as_long_as_that_pays() -> None:
    assert sizes(lambda size: size, bound=100) == [8, 16, 32, 64, 100, 100, 100, 100]


def test_the_first_size_is_never_above_the_bound() -> None:
    assert sizes(lambda size: size, bound=5) == [5] * 8
    assert sizes(lambda size: size, bound=1) == [1] * 8


def test_a_size_that_is_hardly_faster_is_the_last() -> None:
    assert sizes(lambda size: {8: 100.0, 16: 104.9}.get(size, math.inf), bound=100) == [8] + [16] * 7
    assert sizes(lambda size: {8: 100.0, 16: 105.1, 32: 105.2}[size], bound=100)[:4] == [8, 16, 32, 32]


def test_a_size_that_is_slower_is_left_for_good() -> None:
    assert sizes(lambda size: {8: 100.0, 16: 120.0, 32: 119.0}[size], bound=100) == [8, 16, 32, 16, 16, 16, 16, 16]


def test_a_gain_once_seen_is_not_asked_for_again() -> None:
    sizing = Sizing.first(16).after(replace(ROOM, rate=10.0)).after(replace(ROOM, size=16, rate=20.0))
    assert sizing.after(replace(ROOM, size=16, rate=9.0)).size == 16  # a cohort of slow students


def test_a_cohort_of_fewer_runs_or_without_a_rate_changes_nothing() -> None:
    first = Sizing.first(100)
    assert first.after(replace(ROOM, size=3)) == first
    assert first.after(replace(ROOM, rate=0.0)) == first


def test_a_size_that_would_leave_too_little_memory_is_not_tried() -> None:
    # 200 fixed and 50 for each student: 1000 at 16, and 1001 / 0.8 is the least room where that fits
    cohort = Measured(8, 10.0, fixed_bytes=200, peak_bytes=600, room_bytes=1250.0)
    assert Sizing.first(100).after(cohort).size == 16
    refused = Sizing.first(100).after(replace(cohort, room_bytes=1249.0))
    assert (refused.size, refused.bound) == (8, 100)
    assert refused.reason == "16 would take more memory than there is room for"
    assert refused.after(cohort).size == 16  # somebody else has given memory back


def test_a_size_that_leaves_too_little_memory_is_halved_until_it_fits() -> None:
    cohort = Measured(8, 10.0, fixed_bytes=200, peak_bytes=1000, room_bytes=500.0)
    assert Sizing.first(100).after(cohort).size == 2
    assert Sizing.first(100).after(replace(cohort, room_bytes=1.0)).size == 1


def test_a_cohort_that_broke_the_memory_is_halved_for_good() -> None:
    sizing = Sizing.first(100).after_out_of_memory(8)
    assert (sizing.size, sizing.bound, sizing.reason) == (4, 4, "8 broke the memory")
    assert sizing.after(replace(ROOM, size=4)).size == 4
    assert sizing.after_out_of_memory(3).bound == 1
    grown = Sizing(16, 100, "")
    assert grown.after_out_of_memory(5).bound == 2  # of 16 students 11 had ended


@dataclass(frozen=True)
class Machine:
    """Any rates, any memory that is linear in the size, and memory that breaks above a size."""

    rates: tuple[float, ...]
    fixed_bytes: int
    student_bytes: int
    room_bytes: int
    breaks_above: int

    def measured(self, size: int) -> Measured:
        rate = self.rates[size.bit_length() % len(self.rates)]
        return Measured(size, rate, self.fixed_bytes, self.fixed_bytes + size * self.student_bytes, self.room_bytes)


machines = st.builds(
    Machine,
    st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9).map(tuple),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(1, 20_000),
    st.integers(1, 200),
)


@given(machines, st.integers(1, 150))
def test_the_size_stays_within_bound_and_memory_and_comes_to_rest(machine: Machine, bound: int) -> None:
    sizing = Sizing.first(bound)
    chosen: list[Sizing] = []
    for _ in range(40):
        chosen.append(sizing)
        size = sizing.size
        if size > max(1, machine.breaks_above):
            sizing = sizing.after_out_of_memory(size)
            assert sizing.size <= size // 2
            continue
        sizing = sizing.after(machine.measured(size))
        bytes_at_next = machine.fixed_bytes + sizing.size * machine.student_bytes
        assert sizing.size == 1 or bytes_at_next <= MEMORY_SHARE * machine.room_bytes * (1 + 1e-9)
        assert sizing.size <= 2 * size
    assert all(1 <= choice.size <= choice.bound <= bound for choice in chosen)
    assert all(later.bound <= earlier.bound for earlier, later in pairwise(chosen))
    assert len({choice.size for choice in chosen[25:]}) == 1


@given(st.lists(st.floats(LEAST_GAIN + 0.01, 3.0), min_size=1, max_size=6))
def test_with_room_for_all_the_size_grows_as_far_as_each_doubling_pays(gains: list[float]) -> None:
    rates = {FIRST_SIZE * 2**index: math.prod(gains[:index]) for index in range(len(gains) + 1)}
    best = FIRST_SIZE * 2 ** len(gains)
    assert sizes(lambda size: rates.get(size, 0.5), bound=10**6, num=20)[-1] == best


def test_the_pace_is_student_steps_per_second_after_the_first_yield() -> None:
    pace = Pace()
    assert pace.rate == 0.0
    pace.note(100, 4, now=50.0)  # a resumed cohort; all before this has warmed up
    assert pace.rate == 0.0
    pace.note(110, 4, now=52.0)
    assert pace.rate == pytest.approx(10 * 4 / 2.0)
    pace.note(120, 2, now=53.0)  # two ended
    pace.note(140, 0, now=57.0)
    assert pace.rate == pytest.approx((20 * 4 + 20 * 2) / 7.0)
