import dataclasses
import hashlib
import io
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from cluster.objects import FolderStore
from cluster.schema import (
    ARROW_SCHEMA,
    STORE_KEY,
    build,
    check_schema,
    claim_schema,
    encode_json,
    record_from_json,
    record_to_json,
    records_to_table,
    table_to_records,
)
from dass.errors import SchemaTooNewError, StoreError
from dass.records import CurvePoint, Recipe, Record, Run, Status
from tests.cluster.builders import make_record, make_run, records

GOLDEN = Path(__file__).parent.parent / "golden"


@settings(max_examples=60, deadline=None)
@given(records)
def test_json_gives_the_record_back(record: Record) -> None:
    data = record_to_json(record)
    assert record_from_json(data, "key") == record
    assert record_to_json(record_from_json(data, "key")) == data


@settings(max_examples=60, deadline=None)
@given(records, records)
def test_parquet_gives_the_records_back(first: Record, second: Record) -> None:
    file = io.BytesIO()
    pq.write_table(records_to_table([first, second]), file)
    assert table_to_records(pq.read_table(file), "key") == [first, second]


def test_no_records_make_a_table_without_rows() -> None:
    assert table_to_records(records_to_table([]), "key") == []
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


def test_a_run_that_diverged_to_nan_leaves_a_record() -> None:
    record = make_record(make_run(0), status=Status.DIVERGED)
    point = CurvePoint(3, math.nan, math.inf, 10.0)
    record = dataclasses.replace(
        record, result=dataclasses.replace(record.result, curve=(point,), final_loss=-math.inf)
    )
    strict = json.loads(record_to_json(record), parse_constant=pytest.fail)
    assert strict["result"]["curve"][0]["train_loss"] == "NaN"
    for read in (
        record_from_json(record_to_json(record), "key"),
        table_to_records(records_to_table([record]), "key")[0],
    ):
        assert math.isnan(read.result.curve[0].train_loss)
        assert read.result.curve[0].valid_loss == math.inf
        assert read.result.final_loss == -math.inf


def test_json_has_sorted_keys_and_names_its_version_and_run() -> None:
    record = make_record(make_run(0))
    value = json.loads(record_to_json(record))
    assert value["schema"] == 1
    assert value["run_id"] == record.run.id
    assert record_to_json(record).decode() == json.dumps(value, sort_keys=True, separators=(",", ":"))


def _altered(**changes: object) -> bytes:
    return json.dumps({**json.loads(record_to_json(make_record(make_run(0)))), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        _altered(run_id="0" * 32),
        _altered(macs="many"),
        _altered(macs=1.5),
        _altered(unknown=1),
        _altered(schema="one"),
        _altered(result={}),
    ],
)
def test_damaged_records_are_refused_by_key(data: bytes) -> None:
    with pytest.raises(StoreError, match=r"records/loose/ab/abc\.json must hold what .* got .*; delete the object"):
        record_from_json(data, "records/loose/ab/abc.json")


def test_a_table_that_belies_its_run_id_is_refused() -> None:
    table = records_to_table([make_record(make_run(0))])
    forged = table.set_column(table.column_names.index("seed"), "seed", pa.array([5]))
    with pytest.raises(StoreError, match=r"packed\.parquet must hold"):
        table_to_records(forged, "packed.parquet")
    with pytest.raises(StoreError, match=r"packed\.parquet must hold"):
        table_to_records(table.drop_columns(["curve"]), "packed.parquet")


def test_newer_records_ask_for_an_upgrade() -> None:
    with pytest.raises(SchemaTooNewError, match=r"at most 1 .* got 2; upgrade the package"):
        record_from_json(_altered(schema=2, a_new_field=1), "key")
    table = records_to_table([make_record(make_run(0))])
    newer = table.set_column(0, "schema", pa.array([2], pa.int32()))
    with pytest.raises(SchemaTooNewError, match="upgrade the package"):
        table_to_records(newer, "key")


def test_a_field_that_an_old_object_lacks_stands_at_its_default() -> None:
    value = json.loads(record_to_json(make_record(make_run(0))))
    del value["weights"], value["run"]["recipe"]["eval_every"]
    assert record_from_json(json.dumps(value).encode(), "key") == make_record(make_run(0))


def test_the_first_user_claims_a_store_and_a_newer_owner_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    check_schema(store)
    claim_schema(store)
    claim_schema(store)
    check_schema(store)
    assert json.loads(store.get(STORE_KEY)) == {"schema": 1, "id_version": 1}
    for newer in ({"schema": 2, "id_version": 1}, {"schema": 1, "id_version": 2}):
        store.put(STORE_KEY, json.dumps(newer).encode())
        with pytest.raises(SchemaTooNewError, match=r"schema\.json .*upgrade the package"):
            claim_schema(store)
        with pytest.raises(SchemaTooNewError):
            check_schema(store)


def test_equal_values_give_equal_bytes() -> None:
    assert (
        encode_json({"b": (1, 2.5), "a": None}) == encode_json({"a": None, "b": [1, 2.5]}) == b'{"a":null,"b":[1,2.5]}'
    )


def test_golden_run_ids_never_change() -> None:
    cases = json.loads((GOLDEN / "run_ids.json").read_text())
    assert len(cases) >= 5
    for case in cases:
        assert build(Run, case["run"], case["name"]).id == case["run_id"]


def test_a_golden_run_id_is_the_hash_that_the_documentation_describes() -> None:
    case = next(case for case in json.loads((GOLDEN / "run_ids.json").read_text()) if case["name"] == "defaults")
    by_hand = (
        '{"recipe":{},"seed":0,"student":{"widths":[[16,32],[64]]},"task":"0123456789abcdef0123456789abcdef",'
        '"teacher":"fedcba9876543210fedcba9876543210","version":1}'
    )
    assert hashlib.sha256(by_hand.encode()).hexdigest()[:32] == case["run_id"]


def test_a_golden_case_sets_every_field_of_the_recipe() -> None:
    case = next(
        case for case in json.loads((GOLDEN / "run_ids.json").read_text()) if case["name"] == "all recipe fields"
    )
    assert case["run"]["recipe"].keys() == {f.name for f in dataclasses.fields(Recipe)}
    defaults = dataclasses.asdict(Recipe())
    assert all(value != defaults[name] for name, value in case["run"]["recipe"].items())


def test_records_of_version_1_stay_readable() -> None:
    record = record_from_json((GOLDEN / "record_v1.json").read_bytes(), "record_v1.json")
    assert record.run.id == "7c0ac7308e3821becdc380fc1420c35a"
    assert record.run.student.widths == ((16, 32), (64,))
    assert record.result.curve[-1] == CurvePoint(10, 1.0, 1.125, 70.5)
    assert (record.result.best_accuracy_pct, record.macs, record.provenance.lane) == (70.5, 123456789, "lane-3")
    assert table_to_records(pq.read_table(GOLDEN / "records_v1.parquet"), "records_v1.parquet") == [record]
