"""The rules hold in seeded schedules, and bite: bugs planted in the real code are found."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import cluster.checkpoints
import cluster.compaction
import cluster.lane
import cluster.queue
import cluster.queue_actor
import cluster.queue_meter
from cluster.checkpoints import Token, remove_checkpoints
from cluster.database import RunDatabase, loose_key
from cluster.lane import Lane
from cluster.objects import ObjectStore
from cluster.plan import Decision
from cluster.queue import Lease, LeaseQueue, LeaseReply, LeaseState
from cluster.schema import record_to_json
from dass.kd.cohort import Ended
from dass.records import Record, Run
from tests.chaos.simulator import simulate

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = 600  # until a planted bug must be found
KINDS = (
    "lane killed",
    "lane frozen",
    "lane given up while it lives",
    "queue killed",
    "queue frozen",
    "driver killed",
    "store down",
    "store: lost request",
    "store: lost answer",
    "write that outlives its writer",
    "compaction killed",
    "two compactions",
    "reader",
    "run: error",
    "run: out of memory",
    "run: hang",
    "run: crash",
    "queue: answer lost, call repeated",
)


@pytest.mark.parametrize("schedules", [300, pytest.param(10_000, marks=[pytest.mark.chaos, pytest.mark.timeout(7200)])])
def test_the_rules_hold_in_every_schedule(schedules: int) -> None:
    """In processes of their own, where the order of sets is fixed: what breaks a rule can be replayed by its seed."""
    command = [sys.executable, "-m", "tests.chaos", "simulate", "--schedules", str(schedules), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["schedules"] == schedules
    assert summary["violations"] == []
    assert all(summary["faults"][kind] > 0 for kind in KINDS)
    assert summary["runs"] > summary["records"] > 0.8 * summary["runs"]  # some fail for ever, or their teacher does
    assert summary["leases"] > summary["submissions"] > schedules
    assert 0 < summary["steps_repeated"] < summary["steps"]


def test_a_seed_is_one_course_of_events() -> None:
    first, second = simulate(3, traced=True), simulate(3, traced=True)
    assert len(first.trace) > 50
    assert first == second
    assert simulate(4, traced=True).trace != first.trace


Patch = Callable[[pytest.MonkeyPatch], None]


def silent_lanes_keep_what_they_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseQueue, "expire", lambda queue, now: {})


def what_is_leased_is_leased_again(patch: pytest.MonkeyPatch) -> None:
    look = LeaseQueue._look_around

    def look_at_all(queue: LeaseQueue) -> Any:
        owner, queue._owner = queue._owner, {}
        try:
            return look(queue)
        finally:
            queue._owner = owner

    patch.setattr(LeaseQueue, "_look_around", look_at_all)


def nothing_is_left_when_nothing_is_free(patch: pytest.MonkeyPatch) -> None:
    lease = LeaseQueue.lease

    def lease_or_end(queue: LeaseQueue, lane: str, max_runs: int, now: float, request: str = "") -> LeaseReply:
        reply = lease(queue, lane, max_runs, now, request)
        return reply if reply.lease else LeaseReply(LeaseState.EMPTY)

    patch.setattr(LeaseQueue, "lease", lease_or_end)


def a_lost_lease_is_renewed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseQueue, "heartbeat", lambda queue, lane, token, now, saved=None: True)


def a_lane_registers_what_another_one_holds(patch: pytest.MonkeyPatch) -> None:
    def reregister(queue: LeaseQueue, lane: str, run_ids: Iterable[str], token: Token, now: float) -> tuple[str, ...]:
        queue.expire(now)
        kept = tuple(run_id for run_id in run_ids if run_id in queue._open)
        for run_id in kept:
            queue._take_back(run_id)
        if kept:
            queue._hold(lane, token, kept, now)
        return kept

    patch.setattr(LeaseQueue, "reregister", reregister)


def a_restarted_queue_grants_at_once(patch: pytest.MonkeyPatch) -> None:
    make = LeaseQueue.__init__

    def without_grace(queue: LeaseQueue, *args: Any, **settings: Any) -> None:
        make(queue, *args, **{**settings, "grace_until": float("-inf")})

    patch.setattr(LeaseQueue, "__init__", without_grace)


def every_queue_has_the_same_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cluster.queue_actor, "claim_incarnation", lambda store: 1)


def a_queue_forgets_the_checkpoints(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cluster.queue_actor, "find_saved", lambda store, run_ids: {})


def a_failure_is_retried_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cluster.queue, "after_failure", lambda attempts, kind: Decision.RETRY_ALONE)
    make = LeaseQueue.__init__

    def without_budget(queue: LeaseQueue, *args: Any, **settings: Any) -> None:
        make(queue, *args, **{**settings, "max_attempts": 10**9})

    patch.setattr(LeaseQueue, "__init__", without_budget)


def students_do_not_wait_for_their_teacher(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cluster.queue, "ready", lambda runs, finished, diverged: list(runs))


def checkpoints_have_no_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cluster.checkpoints, "_key", lambda run_id, token: f"checkpoints/{run_id}/1-1")


def a_lane_tells_the_queue_before_the_record_is_there(patch: pytest.MonkeyPatch) -> None:
    record = Lane._record

    def tell_first(lane: Lane, ended: Ended, lease: Lease, *rest: Any) -> None:
        vars(cluster.lane)["ray"].get(lane._queue.complete.remote(ended.run.id, lease.token, ended.result.status))
        record(lane, ended, lease, *rest)

    patch.setattr(Lane, "_record", tell_first)


def checkpoints_go_before_the_record_is_there(patch: pytest.MonkeyPatch) -> None:
    record = Lane._record

    def remove_first(lane: Lane, ended: Ended, *rest: Any) -> None:
        remove_checkpoints(lane._store, ended.run.id)
        record(lane, ended, *rest)

    patch.setattr(Lane, "_record", remove_first)


def a_lane_does_not_look_for_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lane, "_without_record", lambda lane, lease: lease.runs)


def states_of_other_positions_train_together(patch: pytest.MonkeyPatch) -> None:
    def cut(runs: tuple[Run, ...], positions: Mapping[str, object], size: int) -> list[tuple[Run, ...]]:
        return [runs[:size]]

    patch.setattr(cluster.lane, "cut_cohorts", cut)


def a_second_record_replaces_the_first(patch: pytest.MonkeyPatch) -> None:
    def add(database: RunDatabase, record: Record) -> bool:
        database.store.put(loose_key(record.run.id), record_to_json(record))
        return True

    patch.setattr(RunDatabase, "add", add)


def compaction_removes_what_it_did_not_write(patch: pytest.MonkeyPatch) -> None:
    pack = cluster.compaction._pack_files

    def doom_first(store: ObjectStore, task: str, loose: Any, files: Any, full_rows: int, doomed: set[str]) -> int:
        for run_id in loose.column("run_id").to_pylist():
            store.delete(loose_key(run_id))
        return pack(store, task, loose, files, full_rows, doomed)

    patch.setattr(cluster.compaction, "_pack_files", doom_first)


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        (silent_lanes_keep_what_they_hold, "silence costs"),
        (what_is_leased_is_leased_again, "two owners|a run with a record is leased"),
        (nothing_is_left_when_nothing_is_free, "nothing is said to be left"),
        (a_lost_lease_is_renewed, "a heartbeat of .* is answered True|silence costs"),
        (a_lane_registers_what_another_one_holds, "a lane registers|two owners|a run with a record is leased"),
        (a_restarted_queue_grants_at_once, "grace"),
        (every_queue_has_the_same_number, "one incarnation"),
        (a_queue_forgets_the_checkpoints, "repeats"),
        (a_failure_is_retried_for_ever, "not all is done"),
        (students_do_not_wait_for_their_teacher, "a reason of its own"),
        (checkpoints_have_no_token, "writes over"),
        (a_lane_tells_the_queue_before_the_record_is_there, "told of records that are not there"),
        (checkpoints_go_before_the_record_is_there, "repeats"),
        (a_lane_does_not_look_for_records, "had a record before its lease"),
        (states_of_other_positions_train_together, "different positions"),
        (a_second_record_replaces_the_first, "and the record of .* is that of"),
        (compaction_removes_what_it_did_not_write, "and the record of .* is that of None"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_bug_breaks_a_rule(plant: Patch, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = next((outcome.violation for seed in range(SCHEDULES) if (outcome := simulate(seed)).violation), None)
    assert found is not None
    assert re.search(rule, found)
