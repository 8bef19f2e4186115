import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.plan import (
    Decision,
    FailureKind,
    Plan,
    Startable,
    after_failure,
    blocked,
    cut_cohorts,
    ready,
    teacher_run,
)
from dass.errors import ConfigError, StoreError
from dass.records import Recipe, Run
from tests.cluster.builders import OWN_TEACHER, make_run, runs

TEACHER = make_run(100, teacher=None)
STUDENTS = [make_run(number, teacher=TEACHER.id) for number in range(3)]


@settings(max_examples=50)
@given(st.lists(runs, max_size=6, unique_by=lambda run: run.id))
def test_a_plan_survives_its_document(planned: list[Run]) -> None:
    plan = Plan("any", tuple(planned))
    document = json.loads(json.dumps(plan.to_document()))
    assert Plan.from_document(document) == plan
    assert Plan.from_document(document).id == plan.id == document["id"]


def test_a_plan_of_thousands_stays_small() -> None:
    planned = tuple(
        replace(make_run(student, task=f"{task:032}"), seed=seed)
        for task in range(10)
        for student in range(200)
        for seed in range(2)
    )
    assert len(json.dumps(Plan("large", planned).to_document())) < 40 * len(planned)


def test_a_plans_id_depends_on_name_and_runs() -> None:
    first, second = make_run(0), make_run(1)
    plans = [Plan("a", (first, second)), Plan("b", (first, second)), Plan("a", (first,)), Plan("a", (second, first))]
    assert len({plan.id for plan in plans}) == 4
    assert Plan("a", (first, second)).id == plans[0].id


def test_a_plan_refuses_repetitions() -> None:
    with pytest.raises(ConfigError, match="each run once"):
        Plan("twice", (make_run(0), make_run(0)))


def test_a_damaged_plan_is_refused() -> None:
    document = Plan("p", (make_run(0), make_run(1))).to_document()
    rows = document["runs"]
    for damage in (
        {"runs": rows[:1]},
        {"runs": [[0, 0, 9, 0, 0]]},
        {"runs": [[0, 0, "x", 0, 0]]},
        {"runs": 3},
        {"id": "0" * 32},
        {"more": 1},
        {"recipes": [{"epochs": 0}]},
    ):
        with pytest.raises(StoreError, match=r"plan \w+ must hold"):
            Plan.from_document({**document, **damage})


def test_students_wait_for_their_teachers_run() -> None:
    own, scratch = make_run(7, teacher=OWN_TEACHER), make_run(8, teacher=None)
    planned = [*STUDENTS, own, scratch, TEACHER]
    assert [teacher_run(run) for run in (STUDENTS[0], own, scratch)] == [TEACHER.id, None, None]
    assert ready(planned, set()) == [own, scratch, TEACHER]
    assert ready(planned, {TEACHER.id}) == planned
    assert ready(planned, {TEACHER.id}, {TEACHER.id}) == [own, scratch, TEACHER]


def test_runs_that_can_never_start_are_named_with_the_reason() -> None:
    grandchild = make_run(50, teacher=STUDENTS[0].id)
    planned = [*STUDENTS, grandchild]
    assert blocked([*planned, TEACHER], set()) == {}
    assert blocked(planned, {TEACHER.id}) == {}
    diverged = blocked(planned, {TEACHER.id}, {TEACHER.id})
    assert diverged == {run.id: f"its teacher {TEACHER.id} diverged" for run in planned}
    missing = blocked(planned, set())
    assert missing.keys() == {run.id for run in planned}
    assert "neither finished nor waiting" in missing[grandchild.id]


def test_cohorts_are_cut_from_runs_that_share_all_but_the_student() -> None:
    base = make_run(0)
    others = [
        replace(base, task="task-b"),
        replace(base, teacher=None),
        replace(base, recipe=Recipe(lr=0.1)),
        replace(base, seed=1),
    ]
    cohorts = cut_cohorts([base, *others, make_run(1)], {}, 8)
    assert sorted(map(len, cohorts)) == [1, 1, 1, 1, 2]
    assert set(cohorts[0]) == {base, make_run(1)}


def test_runs_at_different_positions_do_not_train_together() -> None:
    a, b, c, d = (make_run(number) for number in range(4))
    cohorts = cut_cohorts([a, b, c, d], {a.id: (1, 20), c.id: (1, 20), d.id: (2, 0)}, 8)
    assert sorted(cohorts, key=len) == [(b,), (d,), (a, c)]


def test_long_work_comes_first() -> None:
    planned = [make_run(number) for number in range(6)]
    work = {run.id: cost for run, cost in zip(planned, (1.0, 5.0, 3.0, 2.0, 6.0, 4.0), strict=True)}
    cohorts = cut_cohorts(planned, {}, 2, work)
    assert [[work[run.id] for run in cohort] for cohort in cohorts] == [[6, 5], [4, 3], [2, 1]]
    short, long = make_run(0, epochs=10), make_run(1, epochs=20)
    assert cut_cohorts([short, long], {}, 4) == [(long,), (short,)]


def test_a_cohort_holds_at_least_one_run() -> None:
    with pytest.raises(ConfigError, match=r"got 0; set lanes\.cohort_size"):
        cut_cohorts([make_run(0)], {}, 0)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from("ab"), st.integers(0, 1), st.integers(0, 2), st.integers(0, 5)),
        max_size=30,
        unique_by=lambda drawn: drawn[:3],
    ),
    st.integers(1, 6),
)
def test_every_run_is_in_one_cohort_that_fits(drawn: list[tuple[int, str, int, int, int]], size: int) -> None:
    planned = [make_run(number, task=task, seed=seed) for number, task, seed, _, _ in drawn]
    positions = {run.id: item[3] for run, item in zip(planned, drawn, strict=True)}
    work = {run.id: float(item[4]) for run, item in zip(planned, drawn, strict=True)}
    cohorts = cut_cohorts(planned, positions, size, work)
    assert Counter(run for cohort in cohorts for run in cohort) == Counter(planned)
    shared = [{(run.task, run.seed, positions[run.id]) for run in cohort} for cohort in cohorts]
    assert all(len(keys) == 1 for keys in shared)
    groups = Counter((run.task, run.seed, positions[run.id]) for run in planned)
    assert len(cohorts) == sum(math.ceil(count / size) for count in groups.values())
    totals = [sum(work[run.id] for run in cohort) for cohort in cohorts]
    assert totals == sorted(totals, reverse=True)
    assert cut_cohorts(planned, positions, size, work) == cohorts
    startable = Startable(planned, positions, work, {})
    taken = list(iter(lambda: startable.take(size), ()))
    assert Counter(taken) == Counter(cohorts)
    assert [sum(work[run.id] for run in cohort) for cohort in taken] == totals
    assert not startable


def test_what_most_others_wait_for_is_taken_first_and_some_runs_alone() -> None:
    planned = [make_run(number) for number in range(5)]
    first, needed, _, alone, last = planned
    startable = Startable(planned, {}, {last.id: 99.0}, {needed.id: 7}, {alone.id})
    assert [startable.take(size) for size in (1, 2, 3, 3)] == [(needed,), (last, first), (planned[2],), (alone,)]


def test_the_order_of_different_work_does_not_depend_on_the_order_of_runs() -> None:
    planned = [make_run(number) for number in range(20)]
    work = {run.id: float(number) for number, run in enumerate(planned)}
    shuffled = random.Random(0).sample(planned, 20)
    assert cut_cohorts(shuffled, {}, 3, work) == cut_cohorts(planned, {}, 3, work)


RETRY, ALONE, GIVE_UP = Decision.RETRY, Decision.RETRY_ALONE, Decision.GIVE_UP


@pytest.mark.parametrize(
    ("kind", "decisions"),
    [
        (FailureKind.RETURNED, [RETRY] * 50),
        (FailureKind.LANE_LOST, [RETRY, ALONE, GIVE_UP, GIVE_UP]),
        (FailureKind.STORE, [RETRY, RETRY, RETRY, GIVE_UP]),
        (FailureKind.OUT_OF_MEMORY, [ALONE, GIVE_UP, GIVE_UP]),
        (FailureKind.ERROR, [ALONE, ALONE, GIVE_UP]),
    ],
)
def test_what_follows_a_failure(kind: FailureKind, decisions: list[Decision]) -> None:
    assert [after_failure(attempts, kind) for attempts in range(1, len(decisions) + 1)] == decisions


def test_every_kind_of_failure_has_a_policy() -> None:
    assert all(isinstance(after_failure(1, kind), Decision) for kind in FailureKind)
