"""Where a collection stands, from made-up facts whose answer can be counted by hand."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.events import Event
from cluster.lane_reports import Heard, LaneReport, LaneState
from cluster.outlines import Outline, Outlines, kind_of
from cluster.plan import Decision
from cluster.standing import Standing, device_seconds, idle_share, standing
from dass.records import Run, Status
from tests.cluster.builders import make_run

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
TEACHER = make_run(0, teacher=None)
RUNS = [TEACHER, *(make_run(number, teacher=TEACHER.id) for number in range(1, 41))]


def outline(run: Run, *, macs: int = 1000, seconds: float = 10.0, status: Status = Status.FINISHED) -> Outline:
    return Outline(run.id, kind_of(run), status, 50.0, macs, seconds, "cpu")


def outlines(some: Sequence[Outline], every_s: float = 10.0) -> Outlines:
    """Records that were written one after the other, the last one now."""
    ages = {each.run_id: every_s * (len(some) - 1 - place) for place, each in enumerate(some)}
    known = {each.run_id: each for each in some}
    return Outlines(known.keys(), known, {run_id: NOW - timedelta(seconds=age) for run_id, age in ages.items()})


def lane(*held: Run, since_s: float = 1000.0, age_s: float = 1.0, **fields: object) -> Heard:
    began = (NOW - timedelta(seconds=since_s)).isoformat()
    report = LaneReport("id", "lane0", "queue", "cpu", 1.0, 60.0, 30.0, began, began, LaneState.TRAINING)
    return Heard(replace(report, runs=tuple(run.id for run in held), **fields), age_s)  # type: ignore[arg-type]


def failed(run: Run, decision: Decision, reason: str = "RuntimeError: no", minute: int = 0) -> Event:
    fields = {"run": run.id, "reason": reason, "decision": str(decision)}
    return Event((NOW - timedelta(hours=1) + timedelta(minutes=minute)).isoformat(), "lane0", "failed", fields)


def stands(
    some: Sequence[Outline] = (), heard: Sequence[Heard] = (), events: Sequence[Event] = (), runs: Sequence[Run] = RUNS
) -> Standing:
    macs_of = {run.id: 1000 for run in runs}
    return standing(runs, outlines(some), macs_of, heard, events, NOW)


@given(st.data())
def test_every_run_counts_once(data: st.DataObject) -> None:
    states = data.draw(st.lists(st.integers(0, 4), min_size=len(RUNS), max_size=len(RUNS)))
    of = {state: [run for run, its in zip(RUNS, states, strict=True) if its == state] for state in range(5)}
    some = [outline(run) for run in of[0]] + [outline(run, status=Status.DIVERGED) for run in of[1]]
    found = stands(
        some,
        [lane(*of[2], *of[0])],  # a lane may not yet know of a record
        [failed(run, Decision.GIVE_UP) for run in of[3]] + [failed(run, Decision.RETRY) for run in of[4]],
    )
    (task,) = found.tasks
    assert task.planned == len(RUNS)
    assert task.finished + task.diverged + task.running + task.pending + task.failed == len(RUNS)
    assert (task.finished, task.diverged, task.running) == (len(of[0]), len(of[1]), len(of[2]))
    if TEACHER not in of[1] + of[3]:  # else its students can never start
        assert (task.failed, task.pending) == (len(of[3]), len(of[4]))


def test_a_silent_lane_runs_nothing() -> None:
    assert stands(heard=[lane(*RUNS[:3], age_s=10_000.0)]).tasks[0].running == 0


def test_a_failing_run_is_told_with_its_last_reason_and_all_its_attempts() -> None:
    events = [
        failed(RUNS[1], Decision.RETRY_ALONE, "RuntimeError: first", 1),
        failed(RUNS[2], Decision.GIVE_UP, "StoreError: full", 2),
        failed(RUNS[1], Decision.GIVE_UP, "RuntimeError: last", 3),
        failed(RUNS[3], Decision.RETRY, "gone since", 4),
    ]
    found = stands([outline(TEACHER), outline(RUNS[3])], events=events)
    assert [(each.run, each.attempts, each.reason, each.is_given_up) for each in found.failing] == [
        (RUNS[1].id, 2, "RuntimeError: last", True),
        (RUNS[2].id, 1, "StoreError: full", True),
    ]
    assert found.tasks[0].failed == 2


def test_a_run_that_is_tried_again_is_running_and_not_failed() -> None:
    found = stands([outline(TEACHER)], [lane(RUNS[1])], [failed(RUNS[1], Decision.GIVE_UP)])
    assert (found.tasks[0].running, found.tasks[0].failed) == (1, 0)


def test_what_a_queue_before_gave_up_is_tried_again_by_the_next() -> None:
    before = [failed(RUNS[1], Decision.GIVE_UP), failed(RUNS[2], Decision.GIVE_UP)]
    started = Event((NOW - timedelta(minutes=50)).isoformat(), "queue", "queue started", {"incarnation": 2})
    found = stands([outline(TEACHER)], [], [*before, started, failed(RUNS[2], Decision.GIVE_UP, minute=20)])
    assert {each.run: (each.attempts, each.is_given_up) for each in found.failing} == {
        RUNS[1].id: (1, False),
        RUNS[2].id: (2, True),
    }
    assert (found.tasks[0].failed, found.tasks[0].pending) == (1, len(RUNS) - 2)


def test_students_of_a_diverged_teacher_have_failed_and_say_why() -> None:
    found = stands([outline(TEACHER, status=Status.DIVERGED)])
    assert found.tasks[0].failed == len(RUNS) - 1
    assert {each.reason for each in found.failing} == {f"its teacher {TEACHER.id} diverged"}
    assert found.eta_s == 0.0


def test_at_a_steady_pace_the_time_left_is_exact() -> None:
    done = [outline(run) for run in RUNS[:21]]
    found = stands(done, [lane(since_s=210.0)])
    assert found.runs_per_hour == pytest.approx(360.0)
    assert found.eta_s == pytest.approx(200.0)


def test_the_time_left_counts_work_and_not_runs() -> None:
    """Small students are done, ten times larger ones are left."""
    seconds_of = {run.id: (1.0 if place <= 20 else 10.0) for place, run in enumerate(RUNS)}
    done = [outline(run, macs=int(1000 * seconds_of[run.id]), seconds=seconds_of[run.id]) for run in RUNS[:21]]
    done[20] = outline(RUNS[20], macs=10_000, seconds=10.0)
    macs_of = {run.id: int(1000 * seconds_of[run.id]) for run in RUNS}
    found = standing(RUNS, outlines(done, 1.0), macs_of, [lane(since_s=30.0)], [], NOW)
    assert found.eta_s == pytest.approx(200.0, rel=0.02)


def test_what_is_half_trained_is_half_done() -> None:
    done = [outline(run) for run in RUNS[:37]]
    whole = stands(done, [lane(*RUNS[37:], since_s=370.0)]).eta_s
    half = stands(done, [lane(*RUNS[37:], since_s=370.0, cohort=4, step=50, num_steps=100)]).eta_s
    assert whole == pytest.approx(40.0)
    assert half == pytest.approx(20.0)


def test_earlier_submissions_are_done_but_set_no_pace() -> None:
    done = [outline(run) for run in RUNS[:21]]
    found = stands(done, [lane(since_s=45.0)])  # five of them ended since then
    assert found.runs_per_hour == pytest.approx(3600 * 5 / 45, rel=0.01)


def test_nobody_at_work_gives_no_time_and_all_done_gives_none_left() -> None:
    assert stands([outline(TEACHER)]).eta_s is None
    assert stands([outline(TEACHER)], [lane()]).runs_per_hour is not None
    assert stands([outline(run) for run in RUNS]).eta_s == 0.0


def test_a_run_is_slow_against_the_line_of_its_kind() -> None:
    some = [outline(run, macs=1000 * place, seconds=float(place)) for place, run in enumerate(RUNS) if place]
    some[19] = replace(some[19], seconds=60.0)  # its 20,000 MACs let expect 20 seconds
    (slow,) = stands(some).slow
    assert slow.run == RUNS[20].id
    assert slow.expected_s == pytest.approx(20.0, rel=0.1)


def test_device_seconds_are_those_that_lanes_held_and_at_least_those_of_records() -> None:
    heard = [lane(busy_s=30.0, idle_s=10.0), lane(busy_s=10.0, idle_s=0.0, device="gpu", devices=0.5)]
    some = [outline(RUNS[1], seconds=25.0), replace(outline(RUNS[2]), device="old", seconds=7.0)]
    assert device_seconds(heard, some) == {"cpu": 40.0, "gpu": 5.0, "old": 7.0}
    assert idle_share(heard) == pytest.approx(10.0 / 45.0)
    assert idle_share([]) is None
