"""`collect --dry-run` quotes, and the stop rules of a collection, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.database import RunDatabase
from cluster.lane_reports import LaneReports
from cluster.objects import FolderStore
from cluster.quote import LANE_START_S
from cluster.runtime import device_name
from cluster.schema import encode_json, plain, record_to_json
from dass.records import Record
from jobs import collect
from jobs.prices import CPU_CORE, EXAMPLES, PriceConfig
from tests.jobs.command import call, tree
from tests.jobs.prepared import final_plan, open_smoke

SMOKE = ("--recipe", "smoke")


def quoted(store: Path, *args: str) -> dict[str, Any]:
    answer = call("collect", *SMOKE, "--dry-run", "--json", "--store", store, *args)
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out)["quote"])


def test_a_quote_needs_no_store_and_makes_none(tmp_path: Path) -> None:
    found = quoted(tmp_path / "store")
    assert (found["runs"], found["teachers"], found["students"]) == (15, 4, 11)
    hours = found["device_hours"]
    assert 0 < hours["low"] < hours["expected"] < hours["high"]
    assert [pool["lanes"] for pool in found["pools"]] == [1, 2, 4]  # 4 cohorts, after 4 teachers
    one = found["pools"][0]
    held = one["device_hours"]["expected"]
    assert held == pytest.approx(hours["expected"] + LANE_START_S / 3600)
    on_demand, spot = EXAMPLES[CPU_CORE]
    assert one["on_demand_usd"] == pytest.approx(on_demand * held)
    assert one["spot_usd"] == pytest.approx(spot * held)
    assert tree(tmp_path) == {}


def test_only_what_is_left_is_quoted(store: Path) -> None:
    before = tree(store)
    assert quoted(store) == {"runs": 0}
    found = quoted(store, "--set", "student.epochs=2")
    assert (found["teachers"], found["students"]) == (0, 11)
    assert tree(store) == before


def test_records_made_here_are_believed_rather_than_measured(store: Path) -> None:
    database = RunDatabase(FolderStore(store))
    here = device_name(torch.device("cpu"))
    job = open_smoke(store)
    planned = collect.plan(job, job.tasks()).runs
    for record in list(database.scan({run.id for run in planned})):
        value = plain(record)
        value["provenance"] |= {"device": here, "seconds": 7200.0}
        text = json.loads(record_to_json(record)) | {"provenance": value["provenance"]}
        FolderStore(store).put(f"records/loose/{record.run.id[:2]}/{record.run.id}.json", encode_json(text))
    student = next(run for run in reversed(planned) if run.teacher)
    FolderStore(store).delete(f"records/loose/{student.id[:2]}/{student.id}.json")
    found = quoted(store)
    assert found["source"].startswith("from the records of these recipes")
    assert found["runs"] == 1
    assert 1.0 < found["device_hours"]["expected"] < 4.0  # two hours for each image's worth of a task, more or less


def test_the_room_in_the_store_is_what_a_collection_really_takes(done: Path) -> None:
    """The prepared store holds the records and teachers of the same runs."""
    sizes = quoted(done / "absent")["store_bytes"]
    job = open_smoke(done)
    planned = {run.id for run in collect.plan(job, job.tasks()).runs}
    records: list[Record] = list(job.database.scan(planned))
    assert sizes["records"] == pytest.approx(sum(len(record_to_json(record)) for record in records), rel=0.25)
    kept = sum(job.store.size(f"blobs/{record.weights}") for record in records if record.weights)
    assert sizes["teachers"] == pytest.approx(kept, rel=0.25)


def test_where_there_is_no_gpu_a_quote_for_gpus_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = quoted(tmp_path / "store", "--set", "lanes.gpus=1")
    assert found.keys() == {"runs", "store_bytes"}
    shown = call("collect", *SMOKE, "--dry-run", "--store", tmp_path / "store", "--set", "lanes.gpus=1").out
    assert "No quote of time and cost: lanes.gpus asks for a GPU" in shown


@pytest.mark.parametrize(
    ("device", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA GeForce RTX 4090", "H200"),
        ("AMD Radeon Pro W7900", "H200"),
        ("AMD EPYC 7B13", CPU_CORE),
        ("AMD Ryzen 7 5700G with Radeon Graphics", CPU_CORE),
        ("AMD Ryzen 9 7940HS w/ Radeon 780M Graphics", CPU_CORE),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", CPU_CORE),
    ],
)
def test_a_device_is_priced_by_its_model(device: str, model: str) -> None:
    price = PriceConfig().of(device)
    assert (price.on_demand, price.spot) == EXAMPLES[model]
    assert price.source == f"example for {model}"


def test_a_price_that_is_given_takes_the_place_of_the_example() -> None:
    prices = PriceConfig(on_demand_per_hour=2.0, market="spot")
    assert prices.of("NVIDIA L4").on_demand == 2.0
    assert prices.cost({"NVIDIA L4": 3600.0, "NVIDIA T4": 7200.0}) == pytest.approx(
        EXAMPLES["L4"][1] + 2 * EXAMPLES["T4"][1]
    )


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("prices.spot_per_hour=-1", "prices.spot_per_hour must be >= 0, got -1.0"),
        ("prices.market=auction", "prices.market must be one of on_demand, spot, got 'auction'"),
        ("collect.max_cost=0", "collect.max_cost must be > 0, got 0.0"),
        ("collect.max_device_hours=-3", "collect.max_device_hours must be > 0, got -3.0"),
    ],
)
def test_wrong_prices_and_budgets_are_refused(setting: str, rule: str, tmp_path: Path) -> None:
    answer = call("collect", *SMOKE, "--store", tmp_path / "store", "--set", setting)
    assert answer.code == 2
    assert rule in answer.error


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("collect.max_device_hours=0.001", r"collect.max_device_hours=0.001, got 0.0"),
        ("collect.max_cost=0.0001", "collect.max_cost=0.0001, got $0.000"),
    ],
)
def test_a_budget_that_is_used_up_starts_nothing_and_exits_with_3(setting: str, limit: str, store: Path) -> None:
    job = open_smoke(store)
    left = collect.plan(job, job.tasks()).runs[-1].id
    job.store.delete(f"records/loose/{left[:2]}/{left}.json")
    before = tree(store)
    answer = call("collect", *SMOKE, "--store", store, "--set", setting)
    assert answer.code == 3
    assert answer.error.startswith(f"error: training must stay within {limit}")
    assert "with 1 of 15 runs left; raise the limit and submit the same job again" in answer.error
    assert tree(store) == before


@pytest.mark.parametrize("verb", ["teachers", "search", "distil"])
def test_a_budget_holds_for_every_verb_that_trains(verb: str, store: Path) -> None:
    job = open_smoke(store)
    plan = final_plan(job) if verb == "distil" else collect.plan(job, job.tasks())
    target = job.tasks().target
    assert target is not None
    is_lost = {"teachers": True, "search": True, "distil": False}[verb]
    left = next(run.id for run in plan.runs if (run.teacher is None) is is_lost and run.task == target.id)
    job.store.delete(f"records/loose/{left[:2]}/{left}.json")
    before = tree(store / "records")
    answer = call(verb, *SMOKE, "--store", store, "--set", "collect.max_device_hours=0.001")
    assert answer.code == 3
    assert answer.error.startswith("error: training must stay within collect.max_device_hours=0.001, got 0.0")
    assert tree(store / "records") == before


def test_a_budget_is_no_hindrance_when_nothing_is_left(store: Path) -> None:
    assert call("collect", *SMOKE, "--store", store, "--set", "collect.max_device_hours=0.001").code == 0


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_collection_ends_when_its_budget_is_used(tmp_path: Path) -> None:
    args = (*SMOKE, "--store", tmp_path / "store", "--set", "lanes.report_s=0.2", "--set", "student.epochs=20")
    answer = call("collect", *args, "--set", "collect.max_device_hours=0.0003")
    assert answer.code == 3
    assert "runs left; raise the limit and submit the same job again" in answer.error
    store = FolderStore(tmp_path / "store")
    used_s = sum(heard.report.device_s for heard in LaneReports(store).read())
    assert used_s >= 0.0003 * 3600
    assert len(RunDatabase(store).finished_ids()) < 15
    assert quoted(tmp_path / "store", "--set", "student.epochs=20")["runs"] == 15 - len(
        RunDatabase(store).finished_ids()
    )
