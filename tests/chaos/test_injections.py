"""The short mode of `make chaos`: some faults into one collection, and whether the judge sees what is wrong."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.compaction import compact
from cluster.database import RunDatabase, loose_key
from cluster.objects import FolderStore
from cluster.schema import record_to_json
from dass.records import Status
from tests.chaos import inside
from tests.chaos.inject import inject
from tests.chaos.inside import Trouble
from tests.chaos.site import Collection, open_site
from tests.chaos.trace import Trace
from tests.chaos.verdict import Seen, left_behind, look, undisturbed
from tests.cluster.builders import make_record, make_run

SHORT = {"lane killed": 1, "queue killed": 1, "S3 answers 500": 1, "student exhausts memory": 1}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_faults_in_a_real_collection_leave_no_trace(tmp_path: Path) -> None:
    *_, tallies = inject(SHORT, seed=0, folder=tmp_path)
    assert {tally.fault: tally.injections for tally in tallies} == SHORT
    assert [tally for tally in tallies if not tally.is_clean] == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_students_that_always_fail_are_given_up_and_told_and_all_others_finish(tmp_path: Path) -> None:
    collection = Collection(seed=1, students=3, epochs=2, hang_s=8.0)
    expected = undisturbed(collection, tmp_path / "undisturbed")
    students = sorted(run_id for run_id, record in expected.items() if record.run.teacher)
    cursed: dict[str, Trouble] = dict(zip(students[::5], ("hang", "raise", "exhaust"), strict=True))
    site_folder = tmp_path / "site"
    site_folder.mkdir()
    with open_site(site_folder, "s3") as site:
        inside.curse(site_folder, cursed)
        assert site.submit(collection).wait(timeout=500) == 1
        others = frozenset(expected.keys() - cursed.keys())
        assert look(site.store, expected, diverged=set()) == Seen(others, frozenset(), frozenset())
        reasons = json.loads(subprocess.check_output(site.jobs("status", "--json")))["failing"]
        assert {each["run"] for each in reasons} == cursed.keys()
        inside.curse(site_folder, {})
        assert site.submit(collection).wait(timeout=500) == 0
        assert look(site.store, expected, diverged=set()) == Seen(frozenset(expected), frozenset(), frozenset())
        assert left_behind(site) == {}


def line(what: str, step: int, pid: int, *, time: float, run: str = "a", ended: bool = False) -> str:
    value = {"what": what, "step": step, "pid": pid, "time": time, "runs": [run], "ended": [run] * ended}
    return json.dumps({**value, "steps_per_epoch": 4}) + "\n"


def test_what_is_trained_again_is_held_against_the_last_two_checkpoints(tmp_path: Path) -> None:
    first = tmp_path / "trace-1.jsonl"
    at_steps = [("begins", 0), ("yields", 4), ("saved", 4), ("yields", 8), ("saved", 8), ("yields", 12)]
    first.write_text("".join(line(what, step, 1, time=time) for time, (what, step) in enumerate(at_steps)))
    trace = Trace(tmp_path)
    trace.read()
    assert trace.reached == {"a": 12}
    assert trace.repeated == []
    (tmp_path / "trace-2.jsonl").write_text(line("begins", 4, 2, time=10) + line("yields", 6, 2, time=11))
    (tmp_path / "trace-3.jsonl").write_text(line("begins", 2, 3, time=12))  # of the second's, which began at step 4
    trace.read()
    trace.read()  # nothing twice
    found = [(each.epochs, each.is_exceeding) for each in trace.repeated]
    assert found == [((12 - 4) / 4, False), ((12 - 2) / 4, True)]


def test_a_lane_trains_until_it_ended_or_fell_silent(tmp_path: Path) -> None:
    now = time.time()
    lines = line("yields", 4, 1, time=now) + line("yields", 4, 2, time=now, run="b", ended=True)
    (tmp_path / "trace-1.jsonl").write_text(lines + line("yields", 4, 3, time=now - 60, run="c"))
    trace = Trace(tmp_path)
    trace.read()
    assert {pid: set(lane.runs) for pid, lane in trace.training(within_s=30).items()} == {1: {"a"}}


def test_the_judge_sees_what_is_missing_and_what_is_other_than_expected(tmp_path: Path) -> None:
    runs = [make_run(number) for number in range(4)]
    expected = {run.id: make_record(run) for run in runs}
    missing, same, other, struck = runs
    database = RunDatabase(FolderStore(tmp_path))
    database.add(make_record(same, attempt=7))  # times, attempt and hardware may differ
    database.add(replace(make_record(other), params=201))
    database.add(make_record(struck, status=Status.DIVERGED))
    seen = look(database.store, expected, diverged=set())
    assert expected.keys() - seen.ids == {missing.id}
    assert seen.wrong == {other.id, struck.id}
    assert look(database.store, expected, diverged={struck.id}).wrong == {other.id}
    assert look(database.store, expected, diverged={same.id}).wrong == {same.id, other.id, struck.id}
    assert seen.duplicated == set()


def test_the_judge_sees_a_run_with_two_records_and_one_that_nobody_planned(tmp_path: Path) -> None:
    runs = [make_run(number) for number in range(4)]
    expected = {run.id: make_record(run) for run in runs[:3]}
    twice, again, plain, unplanned = (make_record(run) for run in runs)
    database = RunDatabase(FolderStore(tmp_path))
    for record in (twice, again, plain):
        database.add(record)
    for _ in compact(database.store, 0.0):
        pass
    late = replace(again, provenance=replace(again.provenance, attempt=again.provenance.attempt + 1, lane="late"))
    database.store.put(
        loose_key(late.run.id), record_to_json(late)
    )  # a lease that was overtaken: it counts for nothing
    other = replace(twice, provenance=replace(twice.provenance, seconds=twice.provenance.seconds + 1))
    database.store.put(loose_key(other.run.id), record_to_json(other))
    database.add(unplanned)
    seen = look(database.store, expected, diverged=set())
    assert seen.ids == expected.keys() | {unplanned.run.id}
    assert seen.duplicated == {twice.run.id}
    assert seen.wrong == {unplanned.run.id}


@pytest.mark.parametrize("name", ["threads", "memory_format", "versions"])
def test_the_judge_compares_what_must_be_the_same_of_where_a_run_was_trained(name: str, tmp_path: Path) -> None:
    record = make_record(make_run(1))
    known: dict[str, Any] = {"threads": 7, "memory_format": "other", "versions": {"torch": "0"}}
    changed = replace(record, provenance=replace(record.provenance, **{name: known[name]}))
    database = RunDatabase(FolderStore(tmp_path))
    database.add(changed)
    assert look(database.store, {record.run.id: record}, diverged=set()).wrong == {record.run.id}
