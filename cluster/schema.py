"""Records as bytes: JSON for one, Arrow for many, and the version that both carry.

The columns of a table, which any reader of Parquet can use without this package:

    schema                 version of the record's layout
    run_id                 identity of the run; task, teacher, family, widths, recipe_json and seed decide it
    task, teacher          ids; teacher is null where the run trained a teacher
    family, widths         the student: a list of stages, each a list of its blocks' output widths
    recipe_json            every field of the recipe, defaults included
    status                 finished or diverged
    *_accuracy_pct         top-1 in percent: init, best and final on valid; test where it was measured
    curve                  one struct per evaluation: epoch, train_loss, valid_loss, valid_accuracy_pct
    macs, params           of the student at `resolution` with `num_classes`
    weights                SHA-256 of the kept weights, or null
    started_at ... versions_json   where, when and with what the run was trained; attempt counts the leases of a queue

In JSON a number that is not finite stands as the text NaN, Infinity or -Infinity, because JSON has none: a diverged run
must leave its record too. A field added to the dataclasses raises SCHEMA_VERSION; a reader gives it its default in
older objects and refuses newer ones.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import dacite
import pyarrow as pa

from cluster.objects import ObjectStore
from dass.errors import ObjectNotFoundError, SchemaTooNewError, StoreError
from dass.records import ID_VERSION, CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1
STORE_KEY = "schema.json"

_T = TypeVar("_T", bound="DataclassInstance")
_CHECKS = dacite.Config(strict=True, cast=[tuple, Status], type_hooks={float: float})
_CURVE = pa.list_(
    pa.struct(
        [
            ("epoch", pa.int32()),
            ("train_loss", pa.float64()),
            ("valid_loss", pa.float64()),
            ("valid_accuracy_pct", pa.float64()),
        ]
    )
)
_NULLABLE = {
    "teacher",
    "best_accuracy_pct",
    "final_accuracy_pct",
    "final_loss",
    "test_accuracy_pct",
    "diverged_epoch",
    "weights",
}
_COLUMNS = {
    "schema": pa.int32(),
    "run_id": pa.string(),
    "task": pa.string(),
    "teacher": pa.string(),
    "family": pa.string(),
    "widths": pa.list_(pa.list_(pa.int32())),
    "recipe_json": pa.string(),
    "seed": pa.int64(),
    "status": pa.string(),
    "init_accuracy_pct": pa.float64(),
    "best_accuracy_pct": pa.float64(),
    "final_accuracy_pct": pa.float64(),
    "final_loss": pa.float64(),
    "test_accuracy_pct": pa.float64(),
    "diverged_epoch": pa.int32(),
    "curve": _CURVE,
    "macs": pa.int64(),
    "params": pa.int64(),
    "num_classes": pa.int32(),
    "resolution": pa.int32(),
    "weights": pa.string(),
    "started_at": pa.string(),
    "seconds": pa.float64(),
    "attempt": pa.int32(),
    "lane": pa.string(),
    "device": pa.string(),
    "threads": pa.int32(),
    "memory_format": pa.string(),
    "code_version": pa.string(),
    "versions_json": pa.string(),
}
ARROW_SCHEMA = pa.schema([pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in _COLUMNS.items()])


def plain(value: Any) -> Any:  # noqa: ANN401 - a walk over arbitrary JSON-able values
    """`value` as JSON types: dataclasses with all their fields, numbers that are not finite as texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def encode_json(value: Any) -> bytes:  # noqa: ANN401
    """One text for equal values: sorted keys, no spaces; dataclasses with all their fields."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_json(data: bytes, key: str) -> dict[str, Any]:
    """The JSON object under `key`, which must carry a `schema` version that this package knows.

    Raises:
        SchemaTooNewError: it was written by a newer version of this package.
        StoreError: it is not a JSON object with a version.
    """
    try:
        value = json.loads(data)
        version = value["schema"]
        check_version(version, key)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(key, f"{len(data)} bytes that are not ({error!r})") from error
    return dict(value)


def check_version(version: int, key: str, known: int = SCHEMA_VERSION) -> None:
    """Raise SchemaTooNewError when `version` of the object under `key` is above `known`."""
    if version > known:
        raise SchemaTooNewError(
            f"{key} must have a version of at most {known} to be read here, got {version}; upgrade the package dass"
        )


def build(cls: type[_T], value: Mapping[str, Any], key: str) -> _T:
    """The dataclass `cls` from JSON types, every type checked and no unknown field allowed.

    Raises:
        StoreError: the value does not fit; the message names `key` and the field.
    """
    try:
        return dacite.from_dict(cls, value, _CHECKS)
    except (dacite.DaciteError, ValueError, TypeError) as error:
        raise damaged(key, f"a value that does not fit {cls.__name__} ({error})") from error


def record_to_json(record: Record) -> bytes:
    """The record with its run_id and its schema version; equal records give equal bytes."""
    return encode_json({"schema": SCHEMA_VERSION, "run_id": record.run.id, **plain(record)})


def record_from_json(data: bytes, key: str) -> Record:
    """The record under `key`; its run_id is computed anew.

    Raises:
        SchemaTooNewError: it was written by a newer version of this package.
        StoreError: the bytes are damaged, or the run_id they carry is not that of the run they hold.
    """
    value = decode_json(data, key)
    run_id = value.pop("run_id", None)
    del value["schema"]
    return _verified(build(Record, value, key), run_id, key)


def records_to_table(records: Iterable[Record]) -> pa.Table:
    """One row per record, in the order given; the columns are described at the top."""
    metadata = {"dass_schema": str(SCHEMA_VERSION)}
    return pa.Table.from_pylist([_to_row(record) for record in records], ARROW_SCHEMA.with_metadata(metadata))


def table_to_records(table: pa.Table, key: str) -> list[Record]:
    """The records of a table that `records_to_table` made, in order; every run_id is computed anew.

    Raises:
        SchemaTooNewError: a row was written by a newer version of this package.
        StoreError: a column is missing, or a row is damaged.
    """
    records = []
    for row in table.to_pylist():
        try:
            check_version(row["schema"], key)
            record = _from_row(row, key)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(key, f"a row that does not fit ({error!r})") from error
        records.append(_verified(record, row["run_id"], key))
    return records


def check_schema(store: ObjectStore) -> None:
    """Raise SchemaTooNewError when a newer version of this package owns the store; a store without owner is fine."""
    try:
        value = decode_json(store.get(STORE_KEY), STORE_KEY)
    except ObjectNotFoundError:
        return
    check_version(value.get("id_version", ID_VERSION), f"id_version in {STORE_KEY}", ID_VERSION)


def claim_schema(store: ObjectStore) -> None:
    """Mark the store with our versions at its first use, and check those of an earlier owner.

    Raises:
        SchemaTooNewError: a newer version of this package owns the store.
    """
    store.put_if_absent(STORE_KEY, encode_json({"schema": SCHEMA_VERSION, "id_version": ID_VERSION}))
    check_schema(store)


def damaged(key: str, received: str) -> StoreError:
    """What to tell the user when the object under `key` cannot be understood."""
    return StoreError(
        f"{key} must hold what this package writes there, got {received}; "
        "delete the object and run the job that wrote it again"
    )


def _verified(record: Record, run_id: object, key: str) -> Record:
    if record.run.id != run_id:
        raise damaged(key, f"run_id {run_id} for the run {record.run.id}")
    return record


def _to_row(record: Record) -> dict[str, Any]:
    """The columns of one record: the scalar fields of its parts under their own names, and the rest spelt out."""
    run = record.run
    return {
        **vars(record),
        **vars(record.result),
        **vars(record.provenance),
        "schema": SCHEMA_VERSION,
        "run_id": run.id,
        "task": run.task,
        "teacher": run.teacher,
        "family": run.student.family,
        "widths": run.student.widths,
        "recipe_json": encode_json(run.recipe).decode(),
        "seed": run.seed,
        "status": record.result.status.value,
        "curve": [vars(point) for point in record.result.curve],
        "versions_json": encode_json(record.provenance.versions).decode(),
    }


def _from_row(row: Mapping[str, Any], key: str) -> Record:
    student = Student(tuple(tuple(stage) for stage in row["widths"]), row["family"])
    curve = tuple(CurvePoint(**point) for point in row["curve"])
    status, versions = Status(row["status"]), json.loads(row["versions_json"])
    return Record(
        run=Run(row["task"], row["teacher"], student, _read_recipe(row["recipe_json"], key), row["seed"]),
        result=_fill(Result, row, status=status, curve=curve),
        provenance=_fill(Provenance, row, versions=versions),
        **{name: row[name] for name in ("macs", "params", "num_classes", "resolution", "weights")},
    )


def _fill(cls: type[_T], row: Mapping[str, Any], **given: Any) -> _T:  # noqa: ANN401
    """`cls` from the columns that bear its fields' names, but for the fields in `given`."""
    return cls(**{f.name: row[f.name] for f in dataclasses.fields(cls) if f.name not in given}, **given)


@lru_cache(maxsize=1024)
def _read_recipe(text: str, key: str) -> Recipe:
    """One object for equal texts: a table holds few recipes and many rows."""
    return build(Recipe, json.loads(text), key)
