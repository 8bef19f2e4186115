"""Poisoned records, loose and packed, are refused by name, are never packed, and leave all others readable."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.compaction import compact
from cluster.database import RunDatabase, loose_key
from cluster.objects import FolderStore
from cluster.schema import record_to_json
from cluster.tables import ARROW_SCHEMA, records_to_table, table_to_parquet
from dass.errors import StoreError
from dass.records import Record, Run
from tests.cluster.builders import PROVENANCE, make_record, make_run
from tests.security.site import STUDENT, refusal


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def record_with(**changes: Any) -> Record:
    """A record whose id is right, and other values wherever they stand."""
    record = make_record(make_run(1))
    run = replace(record.run, **{name: value for name, value in changes.items() if name in vars(record.run)})
    result = replace(record.result, **{name: value for name, value in changes.items() if name in vars(record.result)})
    provenance = replace(PROVENANCE, **{name: value for name, value in changes.items() if name in vars(PROVENANCE)})
    own = {name: value for name, value in changes.items() if name in ("macs", "params", "num_classes", "resolution")}
    return replace(record, run=run, result=result, provenance=provenance, **own)


def point(**changes: Any) -> tuple[Any, ...]:
    return (replace(make_record(make_run(1)).result.curve[0], **changes),)


POISONED = [
    {"best_accuracy_pct": float("nan")},
    {"best_accuracy_pct": float("inf")},
    {"best_accuracy_pct": 100.1},
    {"final_accuracy_pct": -1.0},
    {"test_accuracy_pct": 1e308},
    {"init_accuracy_pct": float("nan")},
    {"curve": point(valid_accuracy_pct=float("nan"))},
    {"curve": point(valid_accuracy_pct=1e9)},
    {"curve": point(epoch=-1)},
    {"curve": point(epoch=2**31)},
    {"diverged_epoch": 2**40},
    {"macs": -1},
    {"macs": 2**63},
    {"params": 10**30},
    {"num_classes": 2**31},
    {"resolution": -8},
    {"threads": 10**12},
    {"attempt": 2**31},
    {"incarnation": -1},
    {"seconds": float("inf")},
    {"seconds": float("nan")},
    {"seconds": -1.0},
    {"seed": 2**63},
    {"task": "../../etc"},
    {"task": "/etc"},
    {"task": "a\x00b"},
    {"task": "t\u00e4sk"},
    {"task": ""},
    {"student": replace(STUDENT, widths=((0,), (1,)))},
    {"student": replace(STUDENT, widths=((-8, 8),))},
    {"student": replace(STUDENT, widths=((2**31,),))},
    {"device": "\ud800"},
]


@pytest.mark.parametrize("changes", POISONED, ids=str)
def test_a_record_that_no_run_can_leave_is_refused_and_never_packed(
    changes: dict[str, Any], store: FolderStore
) -> None:
    poisoned = record_with(**changes)
    database, key = RunDatabase(store), loose_key(poisoned.run.id)
    store.put(key, record_to_json(poisoned))
    sound = make_record(make_run(7))
    database.add(sound)
    assert key in refusal(store, lambda store: list(RunDatabase(store).scan()))
    with pytest.raises(StoreError, match=f"1 that are damaged and stay in place: {key}"):
        list(compact(store, grace_s=0))
    assert list(store.list("records/loose/")) == [key]
    assert [record.run for record in RunDatabase(store).scan([sound.run.id])] == [sound.run]


@pytest.mark.parametrize(
    "text", ['"run_id":1', '"run_id":null', '"macs":1e400', f'"macs":{"9" * 4000}', '"run":{"recipe":{"lr":NaN}}']
)
def test_a_record_of_other_types_is_refused(text: str, store: FolderStore) -> None:
    run_id = make_run(1).id
    data = json.loads(record_to_json(make_record(make_run(1))))
    name = text[1:].partition('"')[0]
    del data[name]
    store.put(loose_key(run_id), (json.dumps(data)[:-1] + f",{text}}}").encode())
    assert loose_key(run_id) in refusal(store, lambda store: list(RunDatabase(store).scan()))


def parquet(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def lying(name: str, column: pa.Array) -> bytes:
    """One row of ours, with another column in the place of one."""
    table = records_to_table([make_record(make_run(1))])
    return parquet(table.set_column(table.column_names.index(name), name, column), compression="zstd")


def expanding() -> bytes:
    """25 KB that hold ten million rows."""
    row = records_to_table([make_record(make_run(1))])
    columns = [pa.concat_arrays([row.column(name).combine_chunks()]).take(pa.array([0])) for name in ("schema",)]
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 10**7, pa.int8()), columns[0])
    return parquet(pa.table({"schema": many, "run_id": many.cast(pa.int32())}), compression="zstd")


TABLES: dict[str, Callable[[], bytes]] = {
    "texts as versions": lambda: lying("schema", pa.array(["2"])),
    "a list of versions": lambda: lying("schema", pa.array([[2]])),
    "no version": lambda: lying("schema", pa.array([None], pa.int32())),
    "numbers as ids": lambda: lying("run_id", pa.array([5])),
    "no id": lambda: lying("run_id", pa.array([None], pa.string())),
    "an id that is none": lambda: lying("run_id", pa.array(["../../x"])),
    "an id that is no ASCII": lambda: lying("run_id", pa.array(["\u00e9" * 32])),
    "an id that is no Unicode": lambda: lying("run_id", pa.array([b"\xff" * 32]).view(pa.string())),
    "widths that are none": lambda: lying("widths", pa.array([[[None]]], pa.list_(pa.list_(pa.int32())))),
    "widths as a text": lambda: lying("widths", pa.array(["8"])),
    "a curve without numbers": lambda: lying("curve", pa.array([[None]], ARROW_SCHEMA.field("curve").type)),
    "another curve": lambda: lying("curve", pa.array([[{"epoch": 1}]])),
    "a recipe that is deep": lambda: lying("recipe_json", pa.array(["[" * 100_000])),
    "a recipe that is none": lambda: lying("recipe_json", pa.array(["{}}"])),
    "versions of another type": lambda: lying("versions_json", pa.array(["[[1, 2]]"])),
    "a time that is none": lambda: lying("seconds", pa.array(["nan"])),
    "an accuracy that is none": lambda: lying("best_accuracy_pct", pa.array([float("nan")])),
    "ten million rows": expanding,
    "a page of zeros": lambda: lying("lane", pa.array(["\0" * 50_000_000])),
}


@pytest.mark.parametrize("form", TABLES)
def test_a_packed_file_that_lies_is_refused(form: str, store: FolderStore) -> None:
    key = "records/packed/task-a/poisoned.parquet"
    store.put(key, TABLES[form]())
    assert key in refusal(store, lambda store: list(RunDatabase(store).scan()))
    before = store.get(key)
    with suppress(StoreError):
        list(compact(store, grace_s=0))
    assert list(store.list("records/")) == [key]
    assert store.get(key) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seconds", value) for value in (float("nan"), float("inf"), -1.0)),
        *(("best_accuracy_pct", value) for value in (float("nan"), 100.1, -1.0)),
        ("macs", -5),
    ],
)
def test_what_is_counted_of_packed_records_is_checked_as_the_records_are(
    name: str, value: float, store: FolderStore
) -> None:
    key = "records/packed/task-a/poisoned.parquet"
    store.put(key, lying(name, pa.array([value], ARROW_SCHEMA.field(name).type)))
    assert key in refusal(store, lambda store: list(RunDatabase(store).scan()))
    assert key in refusal(store, lambda store: RunDatabase(store).outlines())


def test_a_sound_packed_file_is_none_of_these(store: FolderStore) -> None:
    record = make_record(make_run(1))
    store.put("records/packed/task-a/sound.parquet", table_to_parquet(records_to_table([record])))
    assert list(RunDatabase(store).scan()) == [record]


def test_a_run_id_is_computed_and_not_believed(store: FolderStore) -> None:
    record = make_record(make_run(1))
    other = Run(record.run.task, record.run.teacher, record.run.student, record.run.recipe, seed=9)
    store.put(loose_key(other.id), record_to_json(record))
    assert loose_key(other.id) in refusal(store, lambda store: list(RunDatabase(store).scan()))


def test_a_packed_file_whose_columns_have_no_name_is_refused(store: FolderStore) -> None:
    """Arrow raises a UnicodeDecodeError then, which is no error of its own."""
    data = table_to_parquet(records_to_table([make_record(make_run(1))]))
    key = "records/packed/task-a/poisoned.parquet"
    for name in (b"run_id", b"schema", b"lane"):
        store.put(key, data.replace(name, b"\xf4" + name[1:]))
        assert key in refusal(store, lambda store: list(RunDatabase(store).scan()))
