"""Quotes: the arithmetic against plain counts, and what a measurement is made of."""

import itertools
import multiprocessing
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.outlines import Outline, kind_of
from cluster.probe import Samples, Work, _meet, probe, side_by_side
from cluster.quote import LANE_START_S, RUN_S, MeasuredSpeed, RecordedSpeed, quote, schedule
from cluster.settings import LaneConfig
from dass.cost import count_macs
from dass.errors import ClusterError
from dass.networks import build
from dass.records import Run, Status
from dass.seeding import generator
from tests.cluster.lane_site import LANES, RECIPE, SPACE, TEACHER, Site, make_site

seconds = st.floats(0.1, 100)
cohorts = st.dictionaries(st.sampled_from("abc"), st.lists(seconds, min_size=1, max_size=5), min_size=1)
teachers = st.dictionaries(st.sampled_from("abc"), seconds)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("quote"))


@given(teachers, cohorts)
def test_one_lane_does_one_after_the_other(teachers: dict[str, float], cohorts: dict[str, list[float]]) -> None:
    total = sum(teachers.values()) + sum(map(sum, cohorts.values()))
    assert list(schedule(teachers, cohorts, 1)) == pytest.approx([total, total])


@given(teachers, cohorts, st.integers(1, 6))
def test_no_schedule_beats_the_work_nor_the_longest_chain(
    teachers: dict[str, float], cohorts: dict[str, list[float]], num: int
) -> None:
    total = sum(teachers.values()) + sum(map(sum, cohorts.values()))
    chains = [teachers.get(task, 0.0) + max(some) for task, some in cohorts.items()]
    end, held = schedule(teachers, cohorts, num)
    assert end >= max([total / num, *chains, *teachers.values()]) * (1 - 1e-9)
    assert end <= total * (1 + 1e-9)
    assert total * (1 - 1e-9) <= held <= num * end * (1 + 1e-9)


def test_students_wait_for_their_teacher_and_others_go_on_meanwhile() -> None:
    end, held = schedule({"a": 10.0}, {"a": [5.0], "b": [8.0, 1.0]}, 2)
    assert (end, held) == (15.0, 15.0 + 9.0)
    assert schedule({"a": 10.0}, {"a": [5.0], "b": [8.0, 1.0]}, 2, idle_s=2.0) == (15.0, 15.0 + 11.0)
    assert schedule({"a": 10.0}, {"a": [5.0], "b": [8.0, 1.0]}, 2, idle_s=60.0) == (15.0, 15.0 + 15.0)


def sampled(steps: list[tuple[float, float]], **fields: object) -> Samples:
    fixed = Samples(4, tuple(steps), ((1e6, 0.2),), (0.08,), ((1e6, 1e-9),), (0.0,), (0.0,), 0)
    return replace(fixed, **fields)  # type: ignore[arg-type]


def test_a_measured_run_takes_its_steps_its_evaluations_and_its_share_of_the_teacher(site: Site) -> None:
    student = SPACE.smallest
    run = Run(site.task.id, "e" * 64, student, replace(RECIPE, epochs=4, eval_every=2))
    speed = MeasuredSpeed(sampled([(1000.0, 0.5)] * 3, valid=((1e6, 1e-3),)), replace(LANES, checkpoint_s=1e9))
    took = speed.run(run, site.task, 1000, asked=0.25)
    steps = 4 * (len(site.task.train) // 16)
    line_s = took.expected - steps * 0.25 * 0.08 / 4 - RUN_S
    evaluation_s = 3 * len(site.task.valid) * 1e-3
    assert line_s >= steps * 0.5 * 0.999
    assert line_s == pytest.approx(steps * 0.5 + evaluation_s, rel=0.05)
    assert [took.low, took.high] == pytest.approx([0.75 * took.expected, 1.25 * took.expected])


def test_the_interval_is_as_wide_as_the_samples_lie_apart(site: Site) -> None:
    run = Run(site.task.id, "e" * 64, SPACE.smallest, RECIPE)
    speed = MeasuredSpeed(sampled([(1000.0, 0.2)] * 10 + [(1000.0, 1.0)] * 10), LANES)
    took = speed.run(run, site.task, 1000, asked=1.0)
    line_s = (1 / 0.2 + 1 / 1.0) / (1 / 0.2**2 + 1 / 1.0**2)  # the least sum of squared relative errors
    assert took.high / took.expected == pytest.approx(1.0 / line_s, rel=0.01)


def test_records_of_a_recipe_tell_what_more_of_it_take(site: Site) -> None:
    plan = site.plan(num=8)
    known = [
        Outline(run.id, kind_of(run), Status.FINISHED, 50.0, 10**6 * place, 2.0 * place, "cpu")
        for place, run in enumerate(plan.runs)
        if run.teacher
    ]
    speed = RecordedSpeed({site.task.id: site.task}, known)
    assert speed.knows(plan.runs[1:])
    assert not speed.knows(plan.runs)  # no teacher was recorded
    larger = replace(site.task, train=site.task.train * 3)
    took = speed.run(plan.runs[1], larger, 5 * 10**6, asked=1.0)
    assert took.expected == pytest.approx(3 * 10.0 + RUN_S)


def test_a_quote_adds_up(site: Site) -> None:
    plan = site.plan(num=20)
    speed = MeasuredSpeed(sampled([(1000.0, 0.5)] * 3), LANES)
    lanes = replace(LANES, num=3, cohort_size=4)
    found = quote(plan.runs, {site.task.id: site.task}, speed, lanes)
    assert (found.num_teachers, found.num_students) == (1, 20)
    assert [pool.lanes for pool in found.pools] == [1, 2, 3, 4]
    first = found.pools[0]
    assert first.lane_s.expected == pytest.approx(found.work_s.expected + LANE_START_S)
    assert first.eta_s.expected == pytest.approx(found.work_s.expected + LANE_START_S)
    assert found.work_s.low < found.work_s.expected < found.work_s.high
    for fewer, more in itertools.pairwise(found.pools):
        assert more.eta_s.expected <= fewer.eta_s.expected
        assert more.lane_s.expected >= fewer.lane_s.expected * (1 - 1e-9)
    nothing = quote([], {}, speed, lanes)
    assert (nothing.work_s.expected, nothing.num_students) == (0.0, 0)


@pytest.mark.parametrize(
    ("settings", "num"),
    [(LaneConfig(num=1), 1), (LaneConfig(num=4, gpus=1.0), 1), (LaneConfig(num=4, gpus=0.5), 2)],
)
def test_as_many_measure_as_share_a_device(settings: LaneConfig, num: int) -> None:
    assert side_by_side(settings) == num


def test_a_probe_measures_small_middling_and_large_students(site: Site) -> None:
    students = tuple(sorted(SPACE.sample(12, generator("probe")), key=lambda s: count_macs(s, 16, 3)))
    macs = [count_macs(student, 16, 3) for student in students]
    work = Work(site.task, "smoke", students, TEACHER, RECIPE, replace(LANES, cohort_size=4), seconds=0.5)
    samples = probe(work, site.pack)
    assert samples.size == 4
    means = sorted({mean for mean, _ in samples.steps})
    assert means == pytest.approx([sum(macs[start : start + 4]) / 4 for start in (1, 4, 7)])
    assert {mean for mean, _ in samples.teacher_steps} == {count_macs(SPACE.largest, 16, 3)}
    assert len(samples.valid) == 8
    assert all(took > 0 for _, took in (*samples.steps, *samples.teacher_steps, *samples.valid))
    largest = build(students[-1], 3).state_dict()
    assert samples.state_bytes > sum(tensor.nbytes for tensor in largest.values())


class Deadly:
    """Ends the process that unpickles it, as the kernel ends one that takes too much memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_a_measuring_process_that_dies_is_told(site: Site) -> None:
    deadly: Any = Deadly()
    work = Work(site.task, "smoke", (deadly,), TEACHER, RECIPE, LANES, seconds=0.5)
    with pytest.raises(ClusterError, match=r"measure must live, got one of 1 that died, .*; lower lanes\.num"):
        probe(work, site.pack)


def test_who_waits_in_vain_for_the_others_measures_all_the_same() -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    barrier.abort()  # as a wait that takes too long does
    process = context.Process(target=_meet, args=(barrier,))
    process.start()
    process.join()
    assert process.exitcode == 0
