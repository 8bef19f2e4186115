"""Kept logits of the teacher: who uses them gets the bits that it would have computed, and the room is bounded."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dass.kd.cohort import Cohort, Position
from dass.kd.logits import TeacherLogits
from tests.dass.kd.tiny import (
    DATA,
    NUM_CLASSES,
    RECIPE,
    RUNS,
    STEPS,
    TEACHER,
    CountingTeacher,
    Trace,
    make_runs,
    trace,
    without_seconds,
)

NUM_STEPS = RECIPE.epochs * STEPS
BATCH_BYTES = RECIPE.batch_size * NUM_CLASSES * 4


def teacher() -> CountingTeacher:
    return CountingTeacher(**vars(TEACHER))


class TestCohorts:
    def test_the_next_cohort_gets_the_same_bits_and_asks_no_teacher(self, together: Trace) -> None:
        expert, logits = teacher(), TeacherLogits()
        for run in RUNS:
            seen = trace(Cohort([run], DATA, expert, keep_weights=True, yield_every=1, logits=logits))
            assert seen.outcome(run) == together.outcome(run)
            assert without_seconds(seen.states[run.id]) == without_seconds(together.states[run.id])
            assert len(expert.passes) == NUM_STEPS  # those of the first
        assert logits.num_bytes == NUM_STEPS * BATCH_BYTES

    def test_one_that_resumes_inside_an_epoch_computes_what_is_missing_only(self, together: Trace) -> None:
        expert, logits, run = teacher(), TeacherLogits(), RUNS[0]
        position = Position(1, 2)
        states = {run.id: together.states[run.id][position]}
        resumed = trace(Cohort([run], DATA, expert, states=states, keep_weights=True, logits=logits))
        assert resumed.outcome(run) == together.outcome(run)
        missing = STEPS + 2
        assert len(expert.passes) == NUM_STEPS - missing
        fresh = trace(Cohort(RUNS[1:], DATA, expert, keep_weights=True, logits=logits))
        assert [fresh.outcome(each) for each in RUNS[1:]] == [together.outcome(each) for each in RUNS[1:]]
        assert len(expert.passes) == NUM_STEPS

    @pytest.mark.parametrize("num_batches", [0, 1, STEPS + 1])
    def test_what_found_no_room_is_computed_again(self, together: Trace, num_batches: int) -> None:
        expert, logits = teacher(), TeacherLogits(num_batches * BATCH_BYTES)
        for run in RUNS[:2]:
            seen = trace(Cohort([run], DATA, expert, keep_weights=True, logits=logits))
            assert seen.outcome(run) == together.outcome(run)
            assert logits.num_bytes == num_batches * BATCH_BYTES
        assert len(expert.passes) == 2 * NUM_STEPS - num_batches

    def test_one_course_after_the_other_in_little_room_gives_the_same_bits(self, together: Trace) -> None:
        logits = TeacherLogits(2 * BATCH_BYTES)
        for seed in (0, 1, 0):
            runs = [replace(run, seed=seed) for run in RUNS[:2]]
            seen = trace(Cohort(runs, DATA, TEACHER, keep_weights=True, logits=logits))
            if seed == 0:
                assert [seen.outcome(run) for run in runs] == [together.outcome(run) for run in runs]

    @pytest.mark.parametrize(
        "cohort",
        [
            lambda expert, logits: Cohort([replace(RUNS[0], seed=1)], DATA, expert, logits=logits),
            lambda expert, logits: Cohort(
                make_runs(DATA, TEACHER, replace(RECIPE, flip=0.0), num=1), DATA, expert, logits=logits
            ),
            lambda expert, logits: Cohort(
                [replace(RUNS[0], teacher="u")], DATA, replace(expert, id="u"), logits=logits
            ),
            lambda expert, logits: Cohort(RUNS[:1], DATA, expert, memory_format=torch.contiguous_format, logits=logits),
        ],
        ids=["seed", "recipe", "teacher", "memory format"],
    )
    def test_other_batches_another_teacher_or_other_arithmetic_share_nothing(
        self, cohort: Callable[[CountingTeacher, TeacherLogits], Cohort]
    ) -> None:
        expert, logits = teacher(), TeacherLogits()
        trace(Cohort(RUNS[:1], DATA, expert, logits=logits))
        trace(cohort(expert, logits))
        assert len(expert.passes) == 2 * NUM_STEPS


def held(logits: TeacherLogits, course: str, num: int = 4) -> list[int]:
    """Which batches of epoch 0 are held."""
    return [index for index in range(num) if logits.get(course, 0, index) is not None]


class TestRoom:
    def fill(self, logits: TeacherLogits, course: str, num: int) -> None:
        for index in range(num):
            logits.put(course, 0, index, torch.full((2, 5), float(index)))  # 40 bytes

    def test_a_batch_is_given_back_as_it_was_put(self) -> None:
        logits = TeacherLogits()
        self.fill(logits, "a", 2)
        kept = logits.get("a", 0, 1)
        assert kept is not None
        assert kept.tolist() == [[1.0] * 5] * 2
        assert logits.get("a", 1, 1) is None
        assert logits.get("b", 0, 1) is None

    def test_within_a_course_the_first_batches_stay(self) -> None:
        logits = TeacherLogits(max_bytes=80)
        self.fill(logits, "a", 4)
        assert held(logits, "a") == [0, 1]
        assert logits.num_bytes == 80

    def test_the_course_that_was_used_longest_ago_goes_first(self) -> None:
        logits = TeacherLogits(max_bytes=160)
        self.fill(logits, "a", 2)
        self.fill(logits, "b", 2)
        assert held(logits, "a") == [0, 1]  # and so it was used after b
        self.fill(logits, "c", 1)
        assert (held(logits, "a"), held(logits, "b"), held(logits, "c")) == ([0, 1], [], [0])
        assert logits.num_bytes == 120

    def test_a_batch_put_twice_counts_once(self) -> None:
        logits = TeacherLogits()
        self.fill(logits, "a", 2)
        self.fill(logits, "a", 2)
        assert logits.num_bytes == 80

    def test_no_room_holds_nothing(self) -> None:
        logits = TeacherLogits(max_bytes=0)
        self.fill(logits, "a", 2)
        assert (held(logits, "a"), logits.num_bytes) == ([], 0)
