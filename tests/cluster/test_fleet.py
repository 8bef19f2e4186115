"""The fleet on a real local Ray: how many lanes there are, who drives them, and what a reclaimed machine costs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

import cluster.fleet
from cluster.checkpoints import find_saved
from cluster.events import read_events
from cluster.fleet import Fleet, _Failure, resources_of
from cluster.lane import LaneJob
from cluster.lanes import run_plan
from cluster.objects import open_store
from cluster.queue import QueueStats
from cluster.runtime import session
from cluster.settings import LaneConfig
from dass.errors import ClusterError, ConfigError
from tests.cluster.lane_site import LANES, RECIPE, Site, in_process, make_site, queue_of, site_in, trained_without_ray
from tests.cluster.s3_server import bucket_url, s3_server, use_endpoint

__all__ = ["bucket_url", "s3_server", "use_endpoint"]  # fixtures

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own deprecations


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with session(num_cpus=2):
        yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def test_a_fleet_grows_with_the_work_to_what_there_is_room_for(site: Site) -> None:
    long = replace(RECIPE, epochs=24)
    seen = list(run_plan(site.store.url, site.plan(long, num=6), replace(LANES, num=3, idle_s=1.0)))
    assert seen[-1].finished == 7
    while_teacher = [stats.note for stats in seen if stats.waiting_for_teacher]
    assert while_teacher[0] == "1 lane waiting for a device"
    assert not any("2 lanes" in note for note in while_teacher)  # one cohort: the teacher
    after_teacher = [stats.note for stats in seen if not stats.waiting_for_teacher]
    assert any("2 lanes waiting for a device" in note for note in after_teacher)  # three cohorts, one lane
    assert any("1 lane starting" in note for note in after_teacher)  # there is one more CPU
    assert ray.available_resources()["CPU"] == 2.0


def test_a_driver_that_hangs_is_overtaken_on_its_own_cluster(site: Site) -> None:
    plan, lanes = site.plan(replace(RECIPE, epochs=12)), replace(LANES, lease_s=6.0)
    hanging = run_plan(site.store.url, plan, lanes)
    next(hanging)  # and it never looks again; one of the two CPUs is held for its lane
    notes = []
    for stats in run_plan(site.store.url, plan, lanes, takeover=True):
        notes.append(stats.note)
    assert notes[0] == "another job on this cluster is asked to end"
    assert stats.finished == 5
    with pytest.raises((ClusterError, ray.exceptions.RayActorError)):
        list(hanging)
    expected = trained_without_ray(site, plan)
    assert {run_id: record.result for run_id, record in site.records().items()} == {
        run_id: ended.result for run_id, ended in expected.items()
    }


def test_a_second_driver_looks_on_and_goes_on_when_the_first_one_ends(site: Site) -> None:
    plan = site.plan(replace(RECIPE, epochs=12))
    first, second = (run_plan(site.store.url, plan, LANES) for _ in range(2))
    for stats in first:
        if stats.finished:
            break
    assert next(second).note == "another job on this cluster trains them"
    first.close()
    *_, last = second
    assert (last.finished, last.note) == (5, "")
    expected = trained_without_ray(site, plan)
    assert {run_id: record.result for run_id, record in site.records().items()} == {
        run_id: ended.result for run_id, ended in expected.items()
    }


def test_a_preempted_lane_saves_what_it_trains_and_another_goes_on_there(site: Site) -> None:
    plan = site.plan(replace(RECIPE, epochs=12))
    queue = queue_of(site, plan)
    looks = iter(range(10**6))
    never_by_time = replace(LANES, checkpoint_s=1e6)
    in_process(site, queue, never_by_time).work(is_preempted=lambda: next(looks) >= 12)
    stats = ray.get(queue.stats.remote())
    assert (stats.running, stats.left) == (0, 4)
    saved = {key.split("/")[1] for key in site.store.list("checkpoints/")}
    assert len(saved) == LANES.cohort_size
    assert saved < {run.id for run in plan.runs[1:]}
    in_process(site, queue, never_by_time).work()
    expected = trained_without_ray(site, plan)
    assert {run_id: record.result for run_id, record in site.records().items()} == {
        run_id: ended.result for run_id, ended in expected.items()
    }
    returned = [event.fields for event in read_events(site.store) if event.kind == "returned"]
    assert {(fields["run"], fields["reason"]) for fields in returned} == {
        (run_id, "the machine is about to go") for run_id in saved
    }


def test_a_cohort_is_saved_in_a_bucket_at_once_and_goes_on_from_there(bucket_url: str) -> None:
    site = site_in(open_store(f"{bucket_url}/some/prefix"))
    plan = site.plan(replace(RECIPE, epochs=12), num=8)
    queue = queue_of(site, plan)
    looks = iter(range(10**6))
    all_at_once = replace(LANES, checkpoint_s=1e6, cohort_size=8)
    in_process(site, queue, all_at_once).work(is_preempted=lambda: next(looks) >= 20)
    states = {run.id: find_saved(site.store, [run.id]) for run in plan.runs[1:]}
    assert all(run_id in saved for run_id, saved in states.items())
    in_process(site, queue, all_at_once).work()
    expected = trained_without_ray(site, plan)
    assert {run_id: record.result for run_id, record in site.records().items()} == {
        run_id: ended.result for run_id, ended in expected.items()
    }


def test_an_idle_lane_beyond_the_least_gives_its_device_back(site: Site) -> None:
    plan = site.plan()
    queue = queue_of(site, plan)
    ray.get(queue.lease.remote("other", 8))  # the teacher, which all others wait for
    in_process(site, queue, replace(LANES, idle_s=0.2)).work(stays=False)
    assert ray.get(queue.stats.remote()).left == 5


def lane_job(site: Site, **settings: object) -> LaneJob:
    return LaneJob(site.store.url, "no such queue", LaneConfig(max_failures=0, **settings))  # type: ignore[arg-type]


def standing(cohorts: int) -> QueueStats:
    return QueueStats(planned=9, finished=0, running=0, pending=9, waiting_for_teacher=0, failed={}, cohorts=cohorts)


def test_lanes_that_fail_for_nothing_end_the_fleet_with_their_reason(site: Site) -> None:
    fleet = Fleet(lane_job(site))
    with pytest.raises(ClusterError, match=r"within 0 restarts, got .*no such queue.*what is finished is kept"):
        all(fleet.step(standing(cohorts=1), 0.0) for _ in iter(int, 1))
    assert len(fleet.causes) == 1


def test_a_lane_that_fails_after_runs_have_ended_is_started_again(site: Site) -> None:
    fleet = Fleet(lane_job(site))
    fleet.step(standing(cohorts=1), 0.0)
    while not fleet._lanes:
        fleet.step(standing(cohorts=1), 0.0)
    with pytest.raises(ClusterError, match="no such queue"):  # the second one, in whose life none did
        all(fleet.step(replace(standing(cohorts=1), finished=1), 0.0) for _ in iter(int, 1))
    assert len(fleet.causes) == 2


def test_a_lane_whose_driver_is_lost_is_started_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    died = _Failure("the node died", is_of_driver=True)
    failures = iter([died])
    real = cluster.fleet._failure
    monkeypatch.setattr(cluster.fleet, "_failure", lambda lane: next(failures, None) or real(lane))
    job = replace(lane_job(site), settings=replace(LANES, max_failures=1))
    fleet = Fleet(job)
    with pytest.raises(ClusterError, match="no such queue"):
        all(fleet.step(standing(cohorts=1), 0.0) for _ in iter(int, 1))
    assert fleet.causes[0] == "the node died"
    assert len(fleet.causes) == 2


def test_nothing_left_wants_no_lane(site: Site) -> None:
    fleet = Fleet(lane_job(site))
    done = replace(standing(cohorts=0), finished=9, pending=0)
    assert not fleet.step(done, 0.0)
    fleet.close()


def test_a_lane_holds_what_its_settings_say() -> None:
    assert resources_of(LaneConfig()) == {"CPU": 1.0}
    assert resources_of(LaneConfig(gpus=0.5, cpus=3, memory_gb=2)) == {"CPU": 3, "GPU": 0.5, "memory": 2e9}


def test_lanes_that_no_machine_has_memory_for_are_refused(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"lanes\.memory_gb must be <= .* on this machine, got 9000"):
        next(run_plan(site.store.url, site.plan(), replace(LANES, memory_gb=9000.0)))
