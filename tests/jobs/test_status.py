"""`status` through the command line, on stores made without a cluster."""

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints import Token
from cluster.database import RunDatabase
from cluster.events import EventLog
from cluster.lane_reports import LaneReporter, LaneReports
from cluster.objects import FolderStore
from cluster.schema import encode_json, plain
from cluster.settings import LaneConfig
from dass.kd.cohort import Progress
from jobs import collect
from tests.jobs.command import call, tree
from tests.jobs.prepared import final_plan, open_smoke

COUNTS = ("planned", "finished", "diverged", "running", "pending", "failed")


def status(store: Path, *args: str) -> dict[str, Any]:
    answer = call("status", "--json", "--store", store, *args)
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out))


def test_an_empty_store_is_all_zeros_and_is_not_made(tmp_path: Path) -> None:
    store = tmp_path / "store"
    found = status(store)
    assert {name: found[name] for name in COUNTS} == dict.fromkeys(COUNTS, 0)
    assert (found["tasks"], found["lanes"], found["cost"]["usd"]) == ([], [], 0)
    assert "0 planned, 0 finished, 0 diverged, 0 running, 0 pending, 0 failed; `collect` plans" in (
        call("status", "--store", store).out
    )
    assert not store.exists()


def test_it_reads_an_empty_folder_without_a_trace(tmp_path: Path) -> None:
    assert call("status", "--store", tmp_path).code == 0
    assert tree(tmp_path) == {}


def test_it_counts_the_records_of_each_task_and_changes_nothing(store: Path) -> None:
    finals = final_plan(open_smoke(store))
    missing = finals.runs[0].id
    FolderStore(store).delete(f"records/loose/{missing[:2]}/{missing}.json")
    before = tree(store)
    found = status(store)
    planned = 15 + len(finals.runs)
    assert [found[name] for name in COUNTS] == [planned, planned - 1, 0, 0, 1, 0]
    rows = {row["name"]: row for row in found["tasks"]}
    counts = {"train0": 4, "train1": 4, "valid0": 4, "target": 3 + len(finals.runs)}
    assert {name: row["planned"] for name, row in rows.items()} == counts
    assert rows["target"]["pending"] == 1
    teachers = [record for record in RunDatabase(FolderStore(store)).scan() if record.run.teacher is None]
    assert sorted(row["teacher_accuracy_pct"] for row in rows.values()) == sorted(
        record.result.best_accuracy_pct or 0.0 for record in teachers
    )
    assert "1 pending" in call("status", "--store", store).out
    assert tree(store) == before


def test_it_says_the_same_of_packed_records(store: Path) -> None:
    loose = status(store)
    assert call("compact", "--store", store, "--grace", "0").code == 0
    assert status(store) == loose


def working(store: Path) -> dict[str, Any]:
    """A lane that holds two runs of a collection which lost three of its records; what status says."""
    job = open_smoke(store)
    *_, first, second, third = (run for run in collect.plan(job, job.tasks()).runs if run.teacher)
    for run in (first, second, third):
        job.store.delete(f"records/loose/{run.id[:2]}/{run.id}.json")
    with EventLog(job.store, "lane0") as log:
        log.emit("failed", run=third.id, reason="RuntimeError: no", decision="retry")
        log.emit("failed", run=third.id, reason="RuntimeError: still no", decision="give up")
    settings = LaneConfig(cpus=2.0, report_s=3600.0)
    with LaneReporter(job.store, "lane0", "queue", torch.device("cpu"), settings) as lane:
        while not any(job.store.list("lanes/")):  # the first report, which its own thread writes
            time.sleep(0.01)
        lane.hold(Token(1, 5), "target", [first.id, second.id])
        lane.begin(0, 16)
        lane.note(Progress(5, 20, 1), 2, [first.id, second.id])
        lane._write()
        alive = job.store.get(key := next(job.store.list("lanes/")))
    job.store.put(key, alive)  # as it was before its end
    return {"failed": third.id, "held": [first.id, second.id]}


def test_it_shows_who_holds_what_and_what_fails(store: Path) -> None:
    made = working(store)
    found = status(store)
    assert [found[name] for name in ("running", "pending", "failed")] == [2, 0, 1]
    (lane,) = found["lanes"]
    assert (lane["runs"], lane["task"], lane["token"], lane["is_alive"]) == (made["held"], "target", "1-5", True)
    assert (lane["step"], lane["num_steps"], lane["epoch"]) == (5, 20, 1)
    (failing,) = found["failing"]
    assert (failing["run"], failing["attempts"], failing["is_given_up"]) == (made["failed"], 2, True)
    assert failing["reason"] == "RuntimeError: still no"
    shown = call("status", "--store", store).out
    assert "RuntimeError: still no" in shown
    assert "1-5" in shown


def test_text_fits_into_a_hundred_columns(store: Path) -> None:
    working(store)
    assert max(map(len, call("status", "--store", store).out.splitlines()[1:])) <= 100


def test_cost_is_what_lanes_held_at_the_prices_given(store: Path) -> None:
    working(store)
    reports = FolderStore(store)
    (heard,) = LaneReports(reports).read()
    report = replace(heard.report, busy_s=5400.0, idle_s=1800.0)
    reports.put(report.key, encode_json({"schema": 2, **plain(report)}))
    prices = ("--set", "prices.on_demand_per_hour=3", "--set", "prices.spot_per_hour=1")
    cost = status(store, *prices)["cost"]
    records = len(list(RunDatabase(reports).scan()))
    assert cost["devices"].pop("cpu")["hours"] == pytest.approx(records / 3600)  # prepared records took 1 s each
    assert cost["device_hours"] == pytest.approx(4.0 + records / 3600)
    assert cost["usd"] == pytest.approx(3 * cost["device_hours"])
    assert cost["usd_per_record"] == pytest.approx(cost["usd"] / records)
    assert cost["idle_share"] == pytest.approx(0.25)
    spot = status(store, *prices, "--set", "prices.market=spot")["cost"]
    assert spot["usd"] == pytest.approx(cost["usd"] / 3)


def test_a_lane_that_fell_silent_is_shown_for_a_day(store: Path) -> None:
    working(store)
    path = next((store / "lanes").glob("*.json"))
    for hours, states in ((3, [False]), (25, [])):
        at = (datetime.now(UTC) - timedelta(hours=hours)).timestamp()
        os.utime(path, (at, at))
        found = status(store)
        assert [lane["is_alive"] for lane in found["lanes"]] == states
        assert (found["running"], found["pending"]) == (0, 2)
        assert ("silent " in call("status", "--store", store).out) == bool(states)
