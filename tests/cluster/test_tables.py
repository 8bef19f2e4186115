import dataclasses
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from cluster.schema import SCHEMA_VERSION
from cluster.tables import (
    ARROW_SCHEMA,
    are_same,
    parquet_to_table,
    records_to_table,
    table_to_parquet,
    table_to_records,
    upgraded,
)
from dass.errors import SchemaTooNewError, StoreError
from dass.records import Recipe, Record
from tests.cluster.builders import make_record, make_run, records
from tests.cluster.test_schema import by_hand

GOLDEN = Path(__file__).parent.parent / "golden"


@settings(max_examples=60)
@given(records, records)
def test_parquet_gives_the_records_back(first: Record, second: Record) -> None:
    table = parquet_to_table(table_to_parquet(records_to_table([first, second])), "key")
    assert list(table_to_records(table, "key")) == [first, second]


def test_no_records_make_a_table_without_rows() -> None:
    assert list(table_to_records(records_to_table([]), "key")) == []
    assert records_to_table([]).schema == ARROW_SCHEMA


def test_a_table_has_plain_columns() -> None:
    run = make_run(7, seed=3)
    row = records_to_table([make_record(run)]).to_pylist()[0]
    assert row["run_id"] == run.id
    assert row["widths"] == [[16, 32], [64, 8]]
    assert json.loads(row["recipe_json"]) == dataclasses.asdict(Recipe())
    assert (row["status"], row["best_accuracy_pct"], row["seed"], row["attempt"]) == ("finished", 62.5, 3, 1)
    assert row["curve"] == [{"epoch": 5, "train_loss": 1.5, "valid_loss": 1.25, "valid_accuracy_pct": 62.5}]
    assert not any(pa.types.is_binary(column.type) for column in ARROW_SCHEMA)


def test_a_run_that_diverged_to_nan_comes_back() -> None:
    record = by_hand(SCHEMA_VERSION)[1]
    (read,) = table_to_records(parquet_to_table(table_to_parquet(records_to_table([record])), "key"), "key")
    assert repr(read) == repr(record)
    assert math.isnan(read.result.curve[0].train_loss)


def test_a_table_that_belies_its_run_id_is_refused() -> None:
    table = records_to_table([make_record(make_run(0))])
    forged = table.set_column(table.column_names.index("seed"), "seed", pa.array([5]))
    with pytest.raises(StoreError, match=r"packed\.parquet must hold"):
        list(table_to_records(forged, "packed.parquet"))
    for lost in ("curve", "incarnation", "schema"):
        with pytest.raises(StoreError, match=rf"packed\.parquet must hold.*{lost}"):
            list(table_to_records(table.drop_columns([lost]), "packed.parquet"))


def test_newer_rows_ask_for_an_upgrade() -> None:
    table = records_to_table([make_record(make_run(0)), make_record(make_run(1))])
    newer = table.set_column(0, "schema", pa.array([3, 4], pa.int32()))
    with pytest.raises(SchemaTooNewError, match="got 4; upgrade the package"):
        list(table_to_records(newer, "key"))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_packed_records_of_every_version_stay_readable(version: int) -> None:
    data = (GOLDEN / f"database_v{version}.parquet").read_bytes()
    table = parquet_to_table(data, "golden")
    assert [repr(record) for record in table_to_records(table, "golden")] == [repr(r) for r in by_hand(version)]
    assert table.schema == ARROW_SCHEMA
    assert table.column("schema").to_pylist() == [SCHEMA_VERSION] * 2  # what it would be written as today
    assert are_same(table, records_to_table(by_hand(version)))


def test_the_first_packed_file_stays_readable() -> None:
    table = parquet_to_table((GOLDEN / "records_v1.parquet").read_bytes(), "golden")
    assert list(table_to_records(table, "golden")) == [by_hand(1)[0]]


def test_an_old_table_of_few_columns_is_upgraded_too() -> None:
    table = pq.read_table(GOLDEN / "database_v1.parquet", columns=["schema", "run_id", "attempt"])
    wanted = ("schema", "run_id", "incarnation", "attempt")
    assert upgraded(table, "golden", wanted).to_pydict() == {
        "schema": [3, 3],
        "run_id": [record.run.id for record in by_hand(1)],
        "incarnation": [0, 0],
        "attempt": [2, 7],
    }


def _with_loss(record: Record, train_loss: float) -> Record:
    point = dataclasses.replace(record.result.curve[0], train_loss=train_loss)
    return dataclasses.replace(record, result=dataclasses.replace(record.result, curve=(point,)))


def test_the_same_rows_are_the_same_bit_for_bit() -> None:
    record = make_record(make_run(0))
    nan, zero = (_with_loss(record, value) for value in (math.nan, 0.0))
    table = records_to_table([nan, zero])
    assert are_same(table, records_to_table([nan, zero]))
    assert are_same(table, pa.concat_tables([table.slice(0, 1), table.slice(1, 1)]))
    others = [
        [zero, nan],
        [nan],
        [nan, _with_loss(record, -0.0)],
        [nan, _with_loss(record, math.nan)],
        [nan, dataclasses.replace(zero, weights="0")],
        [nan, dataclasses.replace(zero, run=make_run(1))],
        [nan, dataclasses.replace(zero, result=dataclasses.replace(zero.result, curve=()))],
        [nan, dataclasses.replace(zero, result=dataclasses.replace(zero.result, final_loss=None))],
    ]
    for other in others:
        assert not are_same(table, records_to_table(other))


def test_a_flipped_bit_in_a_packed_file_is_found() -> None:
    table = records_to_table([make_record(make_run(number)) for number in range(200)])
    data = table_to_parquet(table)
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(1)  # the run ids
    place = column.data_page_offset + column.total_compressed_size - 10
    flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    with pytest.raises(StoreError, match=r"packed\.parquet must hold"):
        parquet_to_table(flipped, "packed.parquet")
