import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings

from cluster.objects import FolderStore
from cluster.schema import (
    SCHEMA_VERSION,
    STORE_KEY,
    build,
    check_schema,
    claim_schema,
    encode_json,
    record_from_json,
    record_to_json,
    upgrade_schema,
)
from dass.errors import SchemaTooNewError, StoreError
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student
from tests.cluster.builders import make_record, make_run, records

GOLDEN = Path(__file__).parent.parent / "golden"
NEWER = SCHEMA_VERSION + 1


@settings(max_examples=60)
@given(records)
def test_json_gives_the_record_back(record: Record) -> None:
    data = record_to_json(record)
    assert record_from_json(data, "key") == record
    assert record_to_json(record_from_json(data, "key")) == data


def test_a_run_that_diverged_to_nan_leaves_a_record() -> None:
    record = make_record(make_run(0), status=Status.DIVERGED)
    point = CurvePoint(3, math.nan, math.inf, 10.0)
    record = dataclasses.replace(
        record, result=dataclasses.replace(record.result, curve=(point,), final_loss=-math.inf)
    )
    strict = json.loads(record_to_json(record), parse_constant=pytest.fail)
    assert strict["result"]["curve"][0]["train_loss"] == "NaN"
    read = record_from_json(record_to_json(record), "key")
    assert math.isnan(read.result.curve[0].train_loss)
    assert read.result.curve[0].valid_loss == math.inf
    assert read.result.final_loss == -math.inf


def test_json_has_sorted_keys_and_names_its_version_and_run() -> None:
    record = make_record(make_run(0))
    value = json.loads(record_to_json(record))
    assert value["schema"] == SCHEMA_VERSION == 3
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


def test_newer_records_ask_for_an_upgrade() -> None:
    with pytest.raises(SchemaTooNewError, match=rf"at most {SCHEMA_VERSION} .* got {NEWER}; upgrade the package"):
        record_from_json(_altered(schema=NEWER, a_new_field=1), "key")


def test_a_field_that_an_old_object_lacks_stands_at_its_default() -> None:
    value = json.loads(record_to_json(make_record(make_run(0))))
    del value["weights"], value["run"]["recipe"]["eval_every"]
    assert record_from_json(json.dumps(value).encode(), "key") == make_record(make_run(0))


def test_the_first_user_claims_a_store_and_a_newer_owner_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    check_schema(store)
    upgrade_schema(store)
    assert not store.exists(STORE_KEY)
    claim_schema(store)
    claim_schema(store)
    check_schema(store)
    assert json.loads(store.get(STORE_KEY)) == {"schema": SCHEMA_VERSION, "id_version": 1}
    for newer in (
        {"schema": NEWER, "id_version": 1},
        {"schema": SCHEMA_VERSION, "id_version": 2},
        {"schema": 1, "id_version": 2},
    ):
        marker = json.dumps(newer).encode()
        store.put(STORE_KEY, marker)
        for look in (claim_schema, upgrade_schema, check_schema):
            with pytest.raises(SchemaTooNewError, match=r"schema\.json .*upgrade the package"):
                look(store)
        assert store.get(STORE_KEY) == marker


@pytest.mark.parametrize("marker", [b'{"id_version":1,"schema":1}', b'{"schema":1}'])
def test_a_store_of_an_older_version_is_taken_over(marker: bytes, tmp_path: Path) -> None:
    for take in (claim_schema, upgrade_schema):
        store = FolderStore(tmp_path / take.__name__)
        store.put(STORE_KEY, marker)
        check_schema(store)
        assert store.get(STORE_KEY) == marker
        take(store)
        assert json.loads(store.get(STORE_KEY)) == {"schema": SCHEMA_VERSION, "id_version": 1}


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


def by_hand(version: int) -> tuple[Record, Record]:
    """The records in the golden files of a version: one that finished and one that diverged."""
    recipe = Recipe(
        "kd_paper", 4.0, 0.9, False, 0.1, 7, 32, 0.01, 0.8, 0.0001, "scratch", 0.25, 0.5, crop_padding=2, eval_every=1,
        precision="bfloat16",
    )  # fmt: skip
    if version < 3:
        recipe = dataclasses.replace(recipe, precision="float32")
    run = Run("0123456789abcdef" * 2, "fedcba9876543210" * 2, Student(((16, 32), (64,))), recipe, 1)
    points = (CurvePoint(5, 1.5, 1.25, 62.5), CurvePoint(10, 1.0, 1.125, 70.5))
    result = Result(Status.FINISHED, points, 9.75, 70.5, 70.5, 1.125, 68.25)
    versions = {"python": "3.11.7", "torch": "2.13.0"}
    where = Provenance(
        "2025-01-02T03:04:05+00:00", 98.5, 2, "lane-3", "cpu", 2, "contiguous", "0.1.0", versions, incarnation=5
    )
    other = Run("0123456789abcdef" * 2, None, Student(((8,), (16, 24), (32,))), Recipe(loss="ce", epochs=10), 3)
    nan = Result(
        Status.DIVERGED, (CurvePoint(5, math.nan, math.inf, 10.0),), 9.75, 10.0, 10.0, math.inf, diverged_epoch=6
    )
    there = Provenance(
        "2025-01-03T04:05:06+00:00", 12.25, 7, "lane-1", "cpu", 1, "channels_last", "0.1.0", {"torch": "2.13.0"}, 4
    )
    if version < 2:
        where, there = (dataclasses.replace(each, incarnation=0) for each in (where, there))
    return (
        Record(run, result, 123456789, 4567, 10, 32, where, "cd" * 32),
        Record(other, nan, 987654321, 7654, 10, 32, there),
    )


@pytest.mark.parametrize("version", [1, 2, 3])
def test_records_of_every_version_stay_readable(version: int) -> None:
    for name, record in zip(("record", "diverged"), by_hand(version), strict=True):
        read = record_from_json((GOLDEN / f"{name}_v{version}.json").read_bytes(), f"{name}_v{version}.json")
        assert repr(read) == repr(record)  # as text, where a NaN equals itself
        assert read.run == record.run


def test_the_bytes_of_a_record_change_with_the_version_only() -> None:
    for name, record in zip(("record", "diverged"), by_hand(SCHEMA_VERSION), strict=True):
        assert record_to_json(record) == (GOLDEN / f"{name}_v{SCHEMA_VERSION}.json").read_bytes()
