"""Lanes on a real local Ray: real runs, real kills, compared with the same runs trained without Ray."""

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import ray.exceptions
import torch

from cluster.checkpoints import Token, put_checkpoint, remove_checkpoints
from cluster.database import loose_key
from cluster.events import read_events
from cluster.heartbeat import Heartbeat
from cluster.lanes import run_plan
from cluster.objects import ObjectStore
from cluster.plan import Plan
from cluster.runtime import session
from cluster.weights import get_weights
from dass.data.batches import ResidentBatches
from dass.errors import ClusterError, ConfigError, StoreError
from dass.kd.cohort import Cohort
from dass.records import Run, Status
from tests.cluster.lane_site import (
    LANES,
    RECIPE,
    SPACE,
    Site,
    in_process,
    make_site,
    queue_of,
    trained_without_ray,
)

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own deprecations


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with session(num_cpus=2):
        yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def processes(name: str) -> Iterator[psutil.Process]:
    """Those of Ray's processes whose actor's class has this in its name."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if name in "".join(process.cmdline()):
                yield process


def leftovers(store: ObjectStore) -> list[str]:
    return list(store.list("checkpoints/"))


def test_a_plan_is_trained_once_and_equals_training_without_ray(site: Site) -> None:
    plan = site.plan()
    stats = site.run(plan)
    assert (stats.planned, stats.finished, stats.running, dict(stats.failed)) == (5, 5, 0, {})
    records, expected = site.records(), trained_without_ray(site, plan)
    assert records.keys() == expected.keys()
    for run_id, record in records.items():
        assert record.result == expected[run_id].result
    teacher = records[plan.runs[0].id]
    assert teacher.weights is not None
    kept = get_weights(site.store, teacher.weights)
    weights = expected[plan.runs[0].id].weights
    assert weights is not None
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items())
    assert all(record.weights is None for record in records.values() if record.run.teacher)
    assert teacher.provenance.threads == 1
    assert leftovers(site.store) == []

    written = {key: site.store.get(key) for key in site.store.list("records/")}
    assert site.run(plan).finished == 5
    assert {key: site.store.get(key) for key in site.store.list("records/")} == written


def test_a_killed_lane_loses_nothing_and_changes_nothing(site: Site) -> None:
    plan = site.plan(replace(RECIPE, epochs=12))
    killed_at: list[list[str]] = []
    for _ in run_plan(site.store.url, plan, LANES):
        written = leftovers(site.store)
        if len(killed_at) < 2 and written and written not in killed_at:  # the second time after the lane went on
            killed_at.append(written)
            for process in processes("RayTrainWorker"):
                process.send_signal(signal.SIGKILL)
    assert killed_at
    records, expected = site.records(), trained_without_ray(site, plan)
    assert records.keys() == expected.keys()
    for run_id, record in records.items():
        assert record.result == expected[run_id].result
    assert leftovers(site.store) == []


def test_an_abandoned_collection_goes_on_where_it_was(site: Site) -> None:
    plan = site.plan(replace(RECIPE, epochs=12))
    progress = run_plan(site.store.url, plan, LANES)
    for stats in progress:
        if stats.finished >= 1 and leftovers(site.store):
            break
    progress.close()
    before = site.records()
    assert 0 < len(before) < len(plan.runs)
    assert site.run(plan).finished == len(plan.runs)
    records, expected = site.records(), trained_without_ray(site, plan)
    assert all(records[run_id] == record for run_id, record in before.items())
    assert {run_id: record.result for run_id, record in records.items()} == {
        run_id: ended.result for run_id, ended in expected.items()
    }


def test_a_diverging_student_is_recorded_and_its_neighbours_finish(site: Site) -> None:
    plan = site.plan()
    wild = Run(site.task.id, plan.runs[0].id, SPACE.smallest, replace(RECIPE, lr=1e30))
    assert site.run(Plan("collect", (*plan.runs, wild))).finished == 6
    records = site.records()
    assert records[wild.id].result.status is Status.DIVERGED
    assert all(record.result.status is Status.FINISHED for run_id, record in records.items() if run_id != wild.id)


def test_a_run_that_cannot_be_trained_is_told_with_its_reason(site: Site) -> None:
    orphan = Run(site.task.id, "0" * 64, SPACE.smallest, RECIPE)  # a teacher that nobody brought
    with pytest.raises(ClusterError, match="the teacher must be in the store"):
        site.run(Plan("collect", (orphan,)), replace(LANES, max_failures=0))
    assert site.records() == {}


def test_a_lease_outlives_a_silence_longer_than_itself(site: Site) -> None:
    quiet = replace(RECIPE, epochs=80, eval_every=80)
    plan = site.plan(quiet)
    stats = site.run(plan, replace(LANES, yield_every=10**6, lease_s=2.5, cohort_size=4))
    assert stats.finished == 5
    students = [record for record in site.records().values() if record.run.teacher]
    assert {record.provenance.attempt for record in students} == {2}  # the teacher had the first lease
    assert all(record.provenance.seconds * len(students) > 2.5 for record in students)


def test_runs_that_kill_their_lane_again_and_again_are_given_up(site: Site) -> None:
    teacher = site.plan().runs[0]
    queue = queue_of(site, Plan("teachers", (teacher,)))
    for _ in range(2):
        ray.get(queue.lease.remote("lane0", 2))
        ray.get(queue.arrive.remote("lane0"))
    ray.get(queue.lease.remote("lane0", 2))  # this life of the lane is the last
    in_process(site, queue).work()
    assert dict(ray.get(queue.stats.remote()).failed) == {teacher.id: "lane lost: lane0 ended"}


@pytest.mark.parametrize("error", [torch.AcceleratorError("an illegal memory access"), StoreError("the disk is full")])
def test_a_lane_ends_with_what_a_new_process_or_a_mended_store_cures(
    error: Exception, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise error

    plan = site.plan()
    queue = queue_of(site, plan)
    lane = in_process(site, queue)
    monkeypatch.setattr(lane, "_train_runs", breaks)
    with pytest.raises(type(error), match=str(error)):
        lane.work()
    stats = ray.get(queue.stats.remote())
    assert (stats.running, dict(stats.failed)) == (0, {})
    *_, failed, ended = read_events(site.store, "lane0")
    assert failed.fields == {
        "run": plan.runs[0].id,
        "token": "1-1",
        "failure": "store" if isinstance(error, StoreError) else "error",
        "reason": f"{type(error).__name__}: {error}",
        "decision": "retry" if isinstance(error, StoreError) else "retry alone",
    }
    assert (ended.kind, ended.fields) == ("lane ended", {"reason": failed.fields["reason"]})


def test_the_reason_of_a_failure_is_in_the_store_before_the_lane_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ValueError("no such layer")

    queue = queue_of(site, site.plan())
    lane = in_process(site, queue)
    monkeypatch.setattr(lane, "_train_runs", breaks)
    lane._train_lease(ray.get(queue.lease.remote("lane0", 1)).lease)  # and then the lane is killed
    (failed,) = read_events(site.store, "lane0")
    assert failed.fields["reason"] == "ValueError: no such layer"


def test_a_checkpoint_that_is_gone_costs_steps_and_not_the_lane(site: Site) -> None:
    plan = Plan("teachers", site.plan().runs[:1])
    run_id = plan.runs[0].id
    cohort = Cohort(plan.runs, ResidentBatches.of(site.pack, site.task), None, keep_weights=True, yield_every=2)
    next(cohort.train())
    put_checkpoint(site.store, run_id, Token(1, 1), cohort.state(run_id))
    queue = queue_of(site, plan)
    assert ray.get(queue.stats.remote()).pending == 1
    remove_checkpoints(site.store, run_id)
    in_process(site, queue).work()
    assert site.records()[run_id].result == trained_without_ray(site, plan)[run_id].result


def test_a_queue_that_is_killed_gets_its_leases_back_and_its_lanes_go_on(site: Site) -> None:
    plan = site.plan(replace(RECIPE, epochs=30))
    was_killed = False
    for stats in run_plan(site.store.url, plan, replace(LANES, cohort_size=4)):
        if not was_killed and stats.finished == 1 and leftovers(site.store):
            for process in processes("QueueActor"):
                process.kill()
            was_killed = True
    assert was_killed
    assert stats.finished == len(plan.runs)
    assert [event.kind for event in read_events(site.store)].count("cohort") == 2  # the teacher's, the students'
    assert len(list(site.store.list("queue/"))) == 2


class Silent:
    """A queue that is starting again: it has not answered yet."""

    def heartbeat(self, *_: object) -> None:
        threading.Event().wait(60)


@pytest.mark.parametrize("state", ["there", "gone", "starting again"])
def test_a_lane_that_hangs_is_killed_so_that_ray_starts_it_again(state: str, site: Site) -> None:
    def hang(queue: Any) -> None:
        with Heartbeat(queue, "lane0", Token(1, 1), lease_s=0.3, hang_s=0.5):
            threading.Event().wait(30)

    queue = ray.remote(num_cpus=0)(Silent).remote() if state == "starting again" else queue_of(site, site.plan())
    if state == "gone":
        ray.kill(queue)
    task = ray.remote(max_retries=0, num_cpus=0)(hang)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(task.remote(queue))


def test_lanes_that_no_machine_of_this_ray_can_hold_are_refused_and_not_waited_for(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"lanes\.cpus must be <= 2 on this machine, got 64"):
        site.run(site.plan(), replace(LANES, cpus=64.0))


def test_a_queue_that_cannot_start_tells_the_cause(site: Site) -> None:
    plan = site.plan()
    site.store.put(loose_key(plan.runs[0].id), b"{")
    with pytest.raises(ClusterError, match=r"the queue must start, got .*StoreError: records/loose/.*json must hold"):
        site.run(plan)


def test_a_queue_that_cannot_start_again_tells_the_cause(site: Site) -> None:
    plan = site.plan(replace(RECIPE, epochs=30))
    lanes = run_plan(site.store.url, plan, LANES)
    next(lanes)
    site.store.put(loose_key(plan.runs[0].id), b"{")
    for process in processes("QueueActor"):
        process.kill()
    with pytest.raises(ClusterError, match=r"the queue must start, got .*StoreError: records/loose/.*json must hold"):
        all(lanes)
