import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.checkpoints import Saved, Token
from cluster.database import RunDatabase
from cluster.objects import FolderStore
from cluster.plan import Decision, FailureKind
from cluster.queue import (
    Lease,
    LeaseQueue,
    LeaseState,
    QueueStats,
    claim_incarnation,
)
from cluster.queue_actor import QueueActor, remote_queue
from dass.errors import ConfigError
from dass.records import Run, Status
from tests.cluster.builders import make_record, make_run

RUNS = [make_run(number) for number in range(4)]
TEACHER = make_run(100, teacher=None)
STUDENTS = [make_run(number, teacher=TEACHER.id) for number in range(3)]


def new_queue(runs: list[Run] = RUNS, incarnation: int = 1, grace_until: float = -1.0) -> LeaseQueue:
    return LeaseQueue(runs, set(), incarnation, lease_s=60.0, grace_until=grace_until)


def granted(queue: LeaseQueue, lane: str = "a", max_runs: int = 8, now: float = 0.0) -> Lease:
    reply = queue.lease(lane, max_runs, now)
    assert reply.state is LeaseState.GRANTED
    assert reply.lease is not None
    return reply.lease


def ids(runs: list[Run] | tuple[Run, ...]) -> list[str]:
    return [run.id for run in runs]


def test_a_token_reads_as_incarnation_and_attempt() -> None:
    assert str(Token(3, 17)) == "3-17"
    assert Token.parse("3-17") == Token(3, 17)
    assert pickle.loads(pickle.dumps(Token(3, 17))) == Token(3, 17)  # noqa: S301 - our own bytes
    for text in ("3", "3-", "a-b", "3-1-2", "-3-1", ""):
        with pytest.raises(ConfigError, match="incarnation-attempt"):
            Token.parse(text)


def test_lanes_share_the_runs_between_them() -> None:
    queue = new_queue()
    first, second = granted(queue, "a", 3), granted(queue, "b", 3)
    assert ids(first.runs + second.runs) == ids(RUNS)
    assert (first.token, second.token) == (Token(1, 1), Token(1, 2))
    assert queue.lease("c", 3, 0.0).state is LeaseState.WAIT
    assert queue.stats() == QueueStats(4, 0, 4, 0, 0, {})


def test_a_call_that_is_repeated_has_the_same_lease_while_it_is_held() -> None:
    """Its answer was lost: a second lease would leave the first one to nobody, whose runs would be charged for that."""
    queue = new_queue()
    first = queue.lease("a", 2, 0.0, "call 1")
    assert queue.lease("a", 2, 1.0, "call 1") == first
    assert queue.stats().running == 2
    others = [queue.lease("b", 1, 1.0, "call 1").lease, queue.lease("a", 1, 2.0, "call 2").lease]
    assert first.lease is not None
    assert [ids(each.runs) for each in (first.lease, *filter(None, others))] == [
        ids(RUNS[:2]),
        [RUNS[2].id],
        [RUNS[3].id],
    ]
    assert queue.lease("a", 2, 100.0, "call 2").lease not in others  # it has expired, so its runs are anybody's


def test_runs_with_a_record_are_never_leased() -> None:
    queue = LeaseQueue(RUNS, set(ids(RUNS[:3])), 1)
    assert granted(queue).runs == (RUNS[3],)
    assert LeaseQueue(RUNS, set(ids(RUNS)), 1).lease("a", 8, 0.0).state is LeaseState.EMPTY


def test_a_lease_ends_run_by_run() -> None:
    queue = new_queue()
    lease = granted(queue)
    assert queue.complete(RUNS[0].id, lease.token, 1.0)
    assert queue.complete(RUNS[0].id, lease.token, 1.0)
    assert queue.fail([RUNS[1].id], lease.token, FailureKind.ERROR, 1.0) == {RUNS[1].id: Decision.RETRY_ALONE}
    assert queue.heartbeat("a", lease.token, 2.0)
    assert queue.stats() == QueueStats(4, 1, 2, 1, 0, {})
    assert granted(queue, "b", 8, 2.0).runs == (RUNS[1],)
    assert queue.complete(RUNS[2].id, lease.token, 3.0)
    assert queue.complete(RUNS[3].id, lease.token, 3.0)
    assert not queue.heartbeat("a", lease.token, 3.0)


def test_heartbeats_keep_a_lease_alive_and_silence_ends_it() -> None:
    queue = new_queue()
    lease = granted(queue, now=0.0)
    for now in (50.0, 100.0, 150.0):
        assert queue.heartbeat("a", lease.token, now)
    assert queue.lease("b", 8, 209.0).state is LeaseState.WAIT
    taken_over = granted(queue, "b", 8, 210.0)
    assert taken_over.runs == lease.runs
    assert not queue.heartbeat("a", lease.token, 211.0)
    assert queue.heartbeat("b", taken_over.token, 211.0)


def test_an_expired_lease_is_lost_even_before_anybody_else_wants_it() -> None:
    queue = new_queue()
    lease = granted(queue, now=0.0)
    assert not queue.heartbeat("a", lease.token, 60.0)
    assert queue.stats() == QueueStats(4, 0, 0, 4, 0, {})


def test_only_the_owner_renews_a_lease() -> None:
    queue = new_queue()
    lease = granted(queue, "a")
    assert not queue.heartbeat("b", lease.token, 1.0)
    assert not queue.heartbeat("a", Token(1, 99), 1.0)


def test_a_zombie_cannot_complete_or_fail_what_another_lane_trains() -> None:
    queue = new_queue()
    zombie = granted(queue, "a", now=0.0)
    owner = granted(queue, "b", now=60.0)
    assert not queue.complete(RUNS[0].id, zombie.token, 61.0)
    assert queue.fail(ids(RUNS), zombie.token, FailureKind.ERROR, 61.0) == {}
    assert queue.release("a", 61.0) == {}
    assert queue.stats() == QueueStats(4, 0, 4, 0, 0, {})
    assert queue.complete(RUNS[0].id, owner.token, 62.0)
    assert queue.complete(RUNS[0].id, zombie.token, 63.0)  # finished already: harmless


def test_a_record_in_the_database_is_the_truth() -> None:
    queue = new_queue()
    lease = granted(queue, "a", 2)
    queue.recorded({RUNS[0].id, RUNS[2].id})
    assert queue.heartbeat("a", lease.token, 1.0)
    assert queue.complete(RUNS[0].id, lease.token, 1.0)
    assert granted(queue, "b").runs == (RUNS[3],)
    assert queue.stats() == QueueStats(4, 2, 2, 0, 0, {})


def test_a_lane_that_ends_returns_what_it_held() -> None:
    queue = new_queue()
    lease = granted(queue, "a", 2)
    granted(queue, "b", 1)
    assert queue.release("a", 1.0) == dict.fromkeys(ids(lease.runs), Decision.RETRY)
    assert queue.stats() == QueueStats(4, 0, 1, 3, 0, {})
    assert not queue.heartbeat("a", lease.token, 2.0)


def test_returned_runs_are_never_charged_and_lost_lanes_are() -> None:
    queue = new_queue(RUNS[:1])
    for now in range(20):
        granted(queue, now=float(now))
        queue.release("a", float(now))
    for attempt in range(1, 4):
        lease = granted(queue, now=attempt * 100.0)
        decision = queue.release("a", attempt * 100.0, FailureKind.LANE_LOST)[RUNS[0].id]
        assert lease.runs == (RUNS[0],)
        assert decision is (
            Decision.RETRY if attempt == 1 else Decision.RETRY_ALONE if attempt == 2 else Decision.GIVE_UP
        )
    assert queue.lease("a", 8, 1000.0).state is LeaseState.EMPTY
    assert queue.stats().failed == {RUNS[0].id: "lane lost: a ended"}


def test_a_run_that_comes_forward_is_not_charged_with_the_loss_of_its_lanes() -> None:
    queue = new_queue(RUNS[:1])
    for position in range(20):
        lease = granted(queue)
        assert queue.heartbeat("a", lease.token, 0.0, {RUNS[0].id: position})
        assert queue.release("a", 0.0, FailureKind.LANE_LOST) == {RUNS[0].id: Decision.RETRY}
    decisions: list[Decision] = []
    for _ in range(2):
        lease = granted(queue)
        queue.heartbeat("a", lease.token, 0.0, {RUNS[0].id: 19})  # no further than before
        decisions += queue.release("a", 0.0, FailureKind.LANE_LOST).values()
    assert decisions == [Decision.RETRY_ALONE, Decision.GIVE_UP]


def test_all_kinds_of_failure_share_one_budget() -> None:
    queue = LeaseQueue(RUNS[:1], set(), 1, max_attempts=3)
    kinds = [FailureKind.LANE_LOST, FailureKind.RETURNED, FailureKind.STORE, FailureKind.ERROR]
    decisions: list[Decision] = []
    for kind in kinds:
        lease = granted(queue)
        decisions += queue.fail([RUNS[0].id], lease.token, kind, 0.0, "why").values()
    assert decisions == [Decision.RETRY, Decision.RETRY, Decision.RETRY, Decision.GIVE_UP]
    assert queue.stats().failed == {RUNS[0].id: "error: why"}


def test_a_run_that_failed_for_its_own_reason_trains_alone() -> None:
    queue = new_queue()
    lease = granted(queue)
    queue.fail(ids(RUNS[1:3]), lease.token, FailureKind.OUT_OF_MEMORY, 1.0)
    queue.release("a", 1.0)
    cohorts = [set(granted(queue, lane).runs) for lane in "abc"]
    assert cohorts == [{RUNS[0], RUNS[3]}, {RUNS[1]}, {RUNS[2]}]


def test_a_run_that_trains_alone_comes_last() -> None:
    """With one lane of few lives, a run that ends every life of it must not keep the others from their turn."""
    longest = make_run(7, epochs=500)
    queue = new_queue([longest, *RUNS])
    queue.fail([longest.id], granted(queue).token, FailureKind.ERROR, 1.0)
    assert [granted(queue, lane, 2).runs for lane in "abc"] == [tuple(RUNS[:2]), tuple(RUNS[2:]), (longest,)]


def test_teachers_come_before_longer_work_and_students_wait() -> None:
    longer = make_run(5, epochs=500)
    queue = new_queue([*STUDENTS, longer, TEACHER])
    assert queue.stats() == QueueStats(5, 0, 0, 2, 3, {})
    lease = granted(queue)
    assert lease.runs == (TEACHER,)
    assert granted(queue, "b").runs == (longer,)
    assert queue.lease("c", 8, 1.0).state is LeaseState.WAIT
    queue.complete(TEACHER.id, lease.token, 2.0)
    assert granted(queue, "c", now=2.0).runs == tuple(STUDENTS)


def test_students_of_a_teacher_that_diverged_or_is_given_up_fail_with_the_reason() -> None:
    queue = new_queue([*STUDENTS, TEACHER])
    queue.complete(TEACHER.id, granted(queue).token, 1.0, Status.DIVERGED)
    assert queue.lease("a", 8, 1.0).state is LeaseState.EMPTY
    assert queue.stats() == QueueStats(
        4, 1, 0, 0, 0, dict.fromkeys(ids(STUDENTS), f"its teacher {TEACHER.id} diverged")
    )
    queue = new_queue([*STUDENTS, TEACHER])
    for _ in range(3):
        queue.fail([TEACHER.id], granted(queue).token, FailureKind.ERROR, 1.0)
    assert queue.lease("a", 8, 1.0).state is LeaseState.EMPTY
    assert queue.stats().failed.keys() == {*ids(STUDENTS), TEACHER.id}


def test_a_teacher_outside_the_plan_serves_when_it_has_a_record() -> None:
    assert granted(LeaseQueue(STUDENTS, {TEACHER.id}, 1)).runs == tuple(STUDENTS)
    assert new_queue(STUDENTS).lease("a", 8, 0.0).state is LeaseState.EMPTY


def test_a_second_submission_adds_runs_and_gives_failed_ones_a_new_budget() -> None:
    queue = LeaseQueue(RUNS[:1], set(), 1, max_attempts=1)
    queue.fail([RUNS[0].id], granted(queue).token, FailureKind.ERROR, 0.0)
    assert queue.lease("a", 8, 0.0).state is LeaseState.EMPTY
    queue.add_runs(RUNS[:2])
    assert set(granted(queue).runs) == set(RUNS[:2])
    queue.add_runs(RUNS[:2])
    assert queue.stats() == QueueStats(2, 0, 2, 0, 0, {})


def test_checkpoints_of_live_leases_are_handed_on_and_cut_the_cohorts() -> None:
    queue = new_queue()
    lease = granted(queue)
    assert lease.saved == {}
    queue.heartbeat("a", lease.token, 1.0, {RUNS[0].id: (3, 20), RUNS[2].id: (3, 20)})
    queue.release("a", 2.0)
    assert not queue.heartbeat("a", lease.token, 3.0, {RUNS[1].id: (9, 0)})  # overtaken: nobody reads that one
    resumed, fresh = granted(queue, "b", now=3.0), granted(queue, "c", now=3.0)
    assert resumed.runs == (RUNS[0], RUNS[2])
    assert resumed.saved == dict.fromkeys(ids(resumed.runs), Saved(lease.token, (3, 20)))
    assert fresh.runs == (RUNS[1], RUNS[3])
    assert fresh.saved == {}


def test_a_restarted_queue_lets_lanes_go_on_before_it_grants_anything() -> None:
    old = granted(new_queue(), "a", 2)
    queue = new_queue(incarnation=2, grace_until=100.0)
    assert queue.lease("b", 8, 50.0).state is LeaseState.WAIT
    assert queue.reregister("a", ids(old.runs), old.token, 60.0) == tuple(ids(old.runs))
    assert queue.reregister("a", ids(old.runs), old.token, 61.0) == tuple(ids(old.runs))
    assert queue.heartbeat("a", old.token, 90.0)
    assert queue.lease("b", 8, 99.0).state is LeaseState.WAIT
    assert granted(queue, "b", now=100.0).runs == tuple(RUNS[2:])
    assert queue.complete(old.runs[0].id, old.token, 110.0)


def test_nobody_registers_late_twice_or_under_a_token_that_cannot_be_old() -> None:
    queue = new_queue(incarnation=2, grace_until=100.0)
    assert queue.reregister("a", ids(RUNS[:2]), Token(1, 1), 10.0) == tuple(ids(RUNS[:2]))
    assert queue.reregister("b", ids(RUNS[2:]), Token(1, 2), 10.0) == tuple(ids(RUNS[2:]))
    assert queue.reregister("a", ids(RUNS[:3]), Token(1, 1), 10.0) == tuple(ids(RUNS[:2]))
    assert queue.reregister("c", ids(RUNS), Token(1, 1), 10.0) == ()
    assert queue.reregister("c", ids(RUNS), Token(2, 1), 10.0) == ()
    assert queue.reregister("c", ["0" * 32], Token(1, 3), 10.0) == ()
    assert queue.reregister("c", ids(RUNS), Token(1, 3), 100.0) == ()


def test_of_two_lanes_that_register_a_run_the_later_owner_has_it() -> None:
    """The one that was overtaken may come first; its checkpoints lie under the lower token, where nobody reads."""
    queue = new_queue(incarnation=2, grace_until=100.0)
    assert queue.reregister("overtaken", ids(RUNS[:2]), Token(1, 1), 10.0) == tuple(ids(RUNS[:2]))
    assert queue.reregister("owner", ids(RUNS[:2]), Token(1, 2), 11.0) == tuple(ids(RUNS[:2]))
    assert not queue.heartbeat("overtaken", Token(1, 1), 12.0)
    assert queue.reregister("overtaken", ids(RUNS[:2]), Token(1, 1), 12.0) == ()
    assert queue.heartbeat("owner", Token(1, 2), 12.0)
    assert queue.stats() == QueueStats(4, 0, 2, 2, 0, {})


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="lease_s > 0"):
        LeaseQueue(RUNS, set(), 1, lease_s=0.0)
    with pytest.raises(ConfigError, match="max_attempts >= 1"):
        LeaseQueue(RUNS, set(), 1, max_attempts=0)


def test_incarnations_count_up_and_never_repeat(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert [claim_incarnation(store) for _ in range(11)] == list(range(1, 12))
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_incarnation(store), range(16)))
    assert sorted(claimed) == list(range(12, 28))


def test_the_actor_starts_from_what_the_store_holds(tmp_path: Path) -> None:
    database = RunDatabase(FolderStore(tmp_path))
    database.add(make_record(TEACHER, status=Status.DIVERGED))
    database.add(make_record(RUNS[0]))
    actor = QueueActor(str(tmp_path), [*RUNS, *STUDENTS], lease_s=30.0)
    assert actor.stats().failed.keys() == set(ids(STUDENTS))
    lease = actor.lease("a", 2).lease
    assert lease is not None
    assert (lease.token, lease.lease_s, lease.runs) == (Token(1, 1), 30.0, (RUNS[1], RUNS[2]))
    assert actor.heartbeat("a", lease.token, {RUNS[1].id: 5})
    assert actor.complete(RUNS[1].id, lease.token)
    assert actor.fail([RUNS[2].id], lease.token, FailureKind.RETURNED) == {RUNS[2].id: Decision.RETRY}
    actor.arrive("a")
    assert actor.stats().lives == {"a": 1}
    assert actor.reregister("a", ids(RUNS), Token(0, 1)) == ()
    actor.recorded({RUNS[2].id})
    stats = actor.stats()
    assert (stats.planned, stats.finished, stats.pending, stats.cohorts) == (7, 3, 1, 1)
    assert QueueActor(str(tmp_path), RUNS).lease("b", 1).lease.token == Token(2, 1)  # type: ignore[union-attr]


def test_stats_count_the_cohorts_that_keep_a_lane_busy() -> None:
    other_tasks = [replace(run, task=f"task{number}") for number, run in enumerate(RUNS)]
    queue = new_queue([*RUNS, *other_tasks, TEACHER, *STUDENTS])
    assert queue.stats().cohorts == 1 + 4 + 1  # the students wait for their teacher
    granted(queue, max_runs=2)
    assert queue.stats().cohorts == 1 + 2 + 4  # the teacher is under way; cohorts of two from now on
    assert queue.stats().left == 12


def test_the_runs_of_an_urgent_task_go_first() -> None:
    late = [replace(run, task="late", recipe=replace(run.recipe, epochs=99)) for run in RUNS]
    queue = LeaseQueue([*RUNS, *late], set(), 1, priority_of={RUNS[0].task: 1})
    assert [granted(queue).runs[0].task for _ in range(2)] == [RUNS[0].task, "late"]
    assert granted(LeaseQueue([*RUNS, *late], set(), 1)).runs[0].task == "late"


def test_a_lane_that_comes_again_loses_what_its_earlier_life_held() -> None:
    queue = new_queue()
    queue.arrive("a", 0.0)
    lease = granted(queue)
    queue.arrive("a", 1.0)
    assert not queue.heartbeat("a", lease.token, 1.0)
    assert queue.stats().lives == {"a": 2}


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_ray_restarts_claims_anew_and_waits_for_its_lanes(tmp_path: Path) -> None:
    import ray

    queue = remote_queue().options(name="queue", max_task_retries=-1).remote(str(tmp_path), RUNS, grace_s=1000.0)
    lease = ray.get(queue.lease.remote("a", 2)).lease
    assert lease.token == Token(1, 1)
    ray.kill(queue, no_restart=False)
    while not FolderStore(tmp_path).exists("queue/2"):  # the next life has claimed its number
        time.sleep(0.05)
    assert ray.get(queue.lease.remote("b", 2)).state is LeaseState.WAIT
    assert ray.get(queue.reregister.remote("a", ids(lease.runs), lease.token)) == tuple(ids(lease.runs))
    assert ray.get(ray.get_actor("queue").heartbeat.remote("a", lease.token))
    assert ray.get(queue.stats.remote()) == QueueStats(4, 0, 2, 2, 0, {})
