"""A lane that runs out of memory: its records are those of runs that nothing disturbed.

torch's allocator itself refuses what is too much. A limit of the kernel would be nearer to life, but at the limit some
libraries below torch end the process instead of telling.
"""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

import cluster.lane
from cluster.events import Event, read_events
from cluster.plan import Plan
from cluster.runtime import session
from dass.kd.cohort import Cohort, Progress
from dass.records import Run
from tests.cluster.lane_site import LANES, Site, in_process, make_site, queue_of, trained_without_ray

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own deprecations

COHORT = replace(LANES, cohort_size=4, checkpoint_s=1e-9)  # a checkpoint at each yield
FULL = 2**60  # bytes that no machine has


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with session(num_cpus=1):
        yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def scarce(most: int, num_yields: int, starts: list[int], huge: Run | None = None) -> type[Cohort]:
    """Cohorts whose memory breaks after some yields when they hold more than `most` runs, or a huge one.

    None begins before what a broken one held is free. Each adds to `starts` the batch that it starts at.
    """
    broken: list[weakref.ref[Cohort]] = []

    class ScarceCohort(Cohort):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            assert [cohort() for cohort in broken] == [None] * len(broken)
            super().__init__(*args, **kwargs)

        def train(self) -> Iterator[Progress]:
            starts.append(self.position.batch)
            for index, progress in enumerate(super().train()):
                if index == num_yields and (len(self.runs) > most or huge in self.runs):
                    broken.append(weakref.ref(self))
                    torch.empty(FULL, dtype=torch.uint8)
                yield progress

    return ScarceCohort


def events(site: Site, kind: str) -> list[Event]:
    return [event for event in read_events(site.store) if event.kind == kind]


def assert_undisturbed(site: Site, plan: Plan) -> None:
    records, expected = site.records(), trained_without_ray(site, plan)
    assert {run_id: record.result for run_id, record in records.items()} == {
        run_id: ended.result for run_id, ended in expected.items()
    }


@pytest.mark.parametrize("num_yields", [0, 2])  # before there is a checkpoint, and after the second
def test_a_cohort_that_breaks_the_memory_goes_on_in_halves_under_its_lease(
    num_yields: int, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = site.plan(num=4)
    starts: list[int] = []
    monkeypatch.setattr(cluster.lane, "Cohort", scarce(2, num_yields, starts))
    in_process(site, queue_of(site, plan), COHORT).work()
    (halved,) = events(site, "cohort halved")
    assert (halved.fields["from"], halved.fields["to"]) == (4, 2)
    assert "can't allocate memory" in halved.fields["reason"]
    cohorts = events(site, "cohort")[1:]  # after the teacher's
    assert [event.fields["size"] for event in cohorts] == [4, 2, 2]
    assert len({event.fields["token"] for event in cohorts}) == 1
    assert starts[1:] == [0, 2 * num_yields, 2 * num_yields]  # two steps to a yield: none is done again
    assert_undisturbed(site, plan)


def test_a_run_that_breaks_the_memory_alone_is_given_up_and_its_company_is_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = site.plan(num=3)
    huge = plan.runs[2]
    queue = queue_of(site, plan)
    monkeypatch.setattr(cluster.lane, "Cohort", scarce(9, 0, [], huge))
    in_process(site, queue, COHORT).work()
    assert ray.get(queue.stats.remote()).failed.keys() == {huge.id}
    assert [event.fields["decision"] for event in events(site, "failed")] == ["retry alone", "give up"]
    assert {event.fields["run"] for event in events(site, "failed")} == {huge.id}
    assert_undisturbed(site, replace(plan, runs=tuple(run for run in plan.runs if run is not huge)))


def test_the_choice_of_a_size_is_told_with_what_it_was_chosen_by(site: Site) -> None:
    in_process(site, queue_of(site, site.plan(num=2)), replace(COHORT, cohort_size=2)).work()
    _, students = events(site, "cohort size")
    measured = students.fields["measured"]
    assert measured["size"] == 2
    assert measured["rate"] > 0
    assert 0 < measured["peak_bytes"] < measured["room_bytes"]
    assert (students.fields["size"], students.fields["reason"]) == (2, "no more are allowed")
