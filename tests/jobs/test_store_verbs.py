"""`compact`, `gc` and `export` through the command line, and the view for DuckDB over what they leave."""

import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

import cluster
from cluster.database import RunDatabase, loose_key
from cluster.documents import put_task
from cluster.objects import FolderStore
from cluster.schema import claim_schema, record_to_json
from cluster.tables import records_to_table, table_to_parquet
from cluster.weights import put_blob
from dass.records import Record, Status, Task
from tests.cluster.builders import make_record, make_run
from tests.cluster.test_schema import by_hand
from tests.jobs.command import ROOT, call, tree

TASK = Task("task-a", "flowers", "sha", 32, ("daisy", "rose"), (4, 7), (0,), (1,), (2,))
RECORDS = [
    *(
        dataclasses.replace(
            make_record(make_run(number, task=f"task-{'ab'[number % 2]}")),
            macs=1000 * number,
            result=dataclasses.replace(make_record(make_run(number)).result, best_accuracy_pct=50.0 + number % 7),
        )
        for number in range(30)
    ),
    make_record(make_run(30), status=Status.DIVERGED),
    by_hand(3)[1],  # its losses are NaN and infinite
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store with loose records and one named task."""
    store = FolderStore(tmp_path / "store")
    claim_schema(store)
    put_task(store, TASK)
    for record in RECORDS:
        store.put(loose_key(record.run.id), record_to_json(record))
    return store.root


def runs_in(place: Path) -> dict[str, str]:
    return {record.run.id: repr(record) for record in RunDatabase(FolderStore(place)).scan()}


# compact


def test_compact_packs_all_and_says_so(place: Path) -> None:
    before = runs_in(place)
    answer = call("compact", "--store", place, "--grace", "0")
    assert answer.code == 0
    assert "Compaction: 32 packed, 3 files, 32 removed" in answer.out
    assert runs_in(place) == before
    assert list((place / "records" / "loose").rglob("*.json")) == []
    assert len(list((place / "records" / "packed").rglob("*.parquet"))) == 3
    again = call("compact", "--store", place, "--json")
    assert json.loads(again.out) == {"packed": 0, "files": 0, "removed": 0, "store": str(place)}


def test_compact_names_damaged_records_at_the_end(place: Path) -> None:
    bad = place / loose_key(RECORDS[3].run.id)
    bad.write_bytes(b"{")
    answer = call("compact", "--store", place, "--grace", "0")
    assert answer.code == 1
    assert str(bad.relative_to(place)) in answer.error
    assert list((place / "records" / "loose").rglob("*.json")) == [bad]


@pytest.mark.parametrize("grace", ["-1", "inf", "nan"])
def test_compact_refuses_a_wait_that_is_none(grace: str, tmp_path: Path) -> None:
    answer = call("compact", "--store", tmp_path, "--grace", grace)
    assert answer.code == 2
    assert answer.error == f"error: --grace must be >= 0 seconds, got {grace}; leave it out for the default"


# gc


def test_gc_lists_and_removes_only_when_asked(place: Path) -> None:
    store = FolderStore(place)
    sha = put_blob(store, b"orphan")
    old = time.time() - 7200
    os.utime(place / "blobs" / sha, (old, old))
    before = tree(place)
    assert json.loads(call("gc", "--store", place, "--json").out)["garbage"] == []  # younger than a day
    listed = call("gc", "--store", place, "--older-than", "1")
    assert "no record and no document names it" in listed.out
    assert "1 objects of 6 bytes would be removed; add --delete" in listed.out
    assert tree(place) == before
    removed = json.loads(call("gc", "--store", place, "--older-than", "1", "--delete", "--json").out)
    assert removed == {
        "garbage": [{"key": f"blobs/{sha}", "size_bytes": 6, "reason": "no record and no document names it"}],
        "objects": 1,
        "size_bytes": 6,
        "removed": True,
    }
    assert {name for name in before if name not in tree(place)} == {f"blobs/{sha}"}


@pytest.mark.parametrize("hours", ["-1", "inf", "nan"])
def test_gc_refuses_an_age_that_is_none(hours: str, tmp_path: Path) -> None:
    answer = call("gc", "--store", tmp_path, "--older-than", hours)
    assert (answer.code, answer.error.startswith("error: --older-than must be >= 0 hours")) == (2, True)


# export


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_exported_parquet_has_a_row_per_run(is_packed: bool, place: Path, tmp_path: Path) -> None:
    if is_packed:
        call("compact", "--store", place, "--grace", "0")
    output = tmp_path / "runs.parquet"
    answer = call("export", "--store", place, "--output", output, "--json")
    assert json.loads(answer.out) == {"runs": 32, "output": str(output)}
    rows = {row["run_id"]: row for row in pq.read_table(output).to_pylist()}
    assert rows.keys() == {record.run.id for record in RECORDS}
    for record in RECORDS:
        row = rows[record.run.id]
        assert row["task_name"] == ("flowers" if record.run.task == "task-a" else None)
        assert (row["student"], row["recipe_epochs"]) == (record.run.student.key, record.run.recipe.epochs)
        assert (row["recipe_loss"], row["recipe_crop_padding"]) == (record.run.recipe.loss, None)
        assert (row["macs"], row["best_accuracy_pct"]) == (record.macs, record.result.best_accuracy_pct)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.parquet", "store"]


def test_an_exported_csv_says_the_same_as_the_records(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs.csv"
    assert call("export", "--store", place, "--output", output).code == 0
    with output.open(newline="") as file:
        rows = {row["run_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(RECORDS)
    for record in RECORDS:
        row = rows[record.run.id]
        assert json.loads(row["widths"]) == [list(stage) for stage in record.run.student.widths]
        assert [float(point["train_loss"]) for point in json.loads(row["curve"])] == pytest.approx(
            [point.train_loss for point in record.result.curve], nan_ok=True
        )
        assert row["status"] == record.result.status
        assert row["diverged_epoch"] == str(record.result.diverged_epoch or "")
        assert float(row["final_loss"]) == record.result.final_loss
        assert row["recipe_scale_by_t2"] == "true"
    assert any(math.isinf(float(row["final_loss"])) for row in rows.values())


def test_an_empty_store_gives_a_file_with_columns_and_no_rows(tmp_path: Path) -> None:
    claim_schema(FolderStore(tmp_path / "store"))
    for name in ("runs.csv", "runs.parquet"):
        assert call("export", "--store", tmp_path / "store", "--output", tmp_path / name).code == 0
    assert pq.read_table(tmp_path / "runs.parquet").num_rows == 0
    (header,) = (tmp_path / "runs.csv").read_text().splitlines()
    assert header.split(",") == pq.read_table(tmp_path / "runs.parquet").column_names


def test_a_place_that_cannot_be_written_is_refused_first(place: Path, tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    for name, part in {
        "runs.xlsx": "--output must end in .parquet or .csv, got",
        "runs": "--output must end in .parquet or .csv, got",
        "folder.csv": "--output must be a file in a folder that exists, got",
        "absent/runs.csv": "--output must be a file in a folder that exists, got",
        "there.csv": "--output must not exist yet, got",
    }.items():
        answer = call("export", "--store", place, "--output", tmp_path / name)
        assert answer.code == 2
        assert answer.error.startswith(f"error: {part}")
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert call("export", "--store", place, "--output", tmp_path / "there.csv", "--force").code == 0
    assert (tmp_path / "there.csv").read_text() != "mine"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_full_disk_leaves_the_file_as_it_was(suffix: str, place: Path, tmp_path: Path) -> None:
    output = tmp_path / f"runs.{suffix}"
    output.write_text("mine")
    code = (
        "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "runpy.run_module('jobs', run_name='__main__')"
    )
    arguments = ["export", "--store", str(place), "--output", str(output), "--force"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --output must be a path with enough free space")
    assert output.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, "store"]


# the view for DuckDB

README_QUERY = """
SELECT task, recipe_json ->> '$.epochs' AS epochs, count(*) AS runs, round(avg(best_accuracy_pct), 2) AS mean_pct,
       max(best_accuracy_pct) AS best_pct, arg_max(widths, best_accuracy_pct) AS best_student,
       round(corr(macs, best_accuracy_pct), 3) AS corr_macs
FROM runs
WHERE status = 'finished' AND teacher IS NOT NULL
GROUP BY task, epochs ORDER BY task, epochs
"""


def ready_view(place: Path, monkeypatch: pytest.MonkeyPatch) -> duckdb.DuckDBPyConnection:
    monkeypatch.chdir(place)
    connection = duckdb.connect()
    connection.execute((Path(str(cluster.__file__)).parent / "views.sql").read_text())
    return connection


def test_the_view_has_one_row_per_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("compact", "--store", place, "--grace", "0")
    twice = [
        dataclasses.replace(
            record, provenance=dataclasses.replace(record.provenance, incarnation=number % 3, attempt=9)
        )
        for number, record in enumerate(RECORDS[:6:2])
    ]
    FolderStore(place).put("records/packed/task-a/twice.parquet", table_to_parquet(records_to_table(twice)))
    rows = ready_view(place, monkeypatch).execute(
        "SELECT run_id, incarnation, attempt, best_accuracy_pct, len(curve), macs FROM runs"
    )
    records: list[Record] = list(RunDatabase(FolderStore(place)).scan())
    assert sorted(rows.fetchall()) == sorted(
        (
            record.run.id,
            record.provenance.incarnation,
            record.provenance.attempt,
            record.result.best_accuracy_pct,
            len(record.result.curve),
            record.macs,
        )
        for record in records
    )


def test_the_readme_shows_the_query_that_is_tested() -> None:
    assert " ".join(README_QUERY.split()) in " ".join((ROOT / "README.md").read_text().split())


def test_the_query_of_the_readme_says_what_the_records_say(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("compact", "--store", place, "--grace", "0")
    rows = ready_view(place, monkeypatch).execute(README_QUERY).fetchall()
    assert [row[0] for row in rows] == ["task-a", "task-b"]
    for task, epochs, runs, mean_pct, best_pct, best_student, corr_macs in rows:
        mine = [r for r in RECORDS if r.run.task == task and r.result.status is Status.FINISHED]
        accuracies = [record.result.best_accuracy_pct or 0.0 for record in mine]
        best = {r.run.student.widths for r in mine if r.result.best_accuracy_pct == max(accuracies)}
        assert {epochs} == {str(record.run.recipe.epochs) for record in mine}
        assert (runs, best_pct) == (len(mine), max(accuracies))
        assert mean_pct == pytest.approx(np.mean(accuracies), abs=0.01)
        assert tuple(map(tuple, best_student)) in best
        assert corr_macs == pytest.approx(np.corrcoef([r.macs for r in mine], accuracies)[0, 1], abs=0.001)


@pytest.mark.parametrize("verb", [("compact",), ("gc",), ("gc", "--delete"), ("export", "--output")])
def test_a_folder_that_is_no_store_is_refused_and_left_as_it_is(verb: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    output = [tmp_path / "out.csv"] if verb[-1] == "--output" else []
    before = tree(tmp_path)
    for store in (tmp_path / "photos", tmp_path / "absent"):
        answer = call(*verb, *output, "--store", store)
        assert (answer.code, answer.out) == (2, "")
        assert answer.error == (
            f"error: --store must hold what other verbs have written, got {store} without schema.json; correct the path"
        )
    assert tree(tmp_path) == before
