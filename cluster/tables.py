"""Records as Arrow tables and Parquet, which any reader of Parquet can use without this package.

    schema                 version of the record's layout
    run_id                 identity of the run; task, teacher, family, widths, recipe_json and seed decide it
    incarnation, attempt   the lease under which it was trained: of two rows of one run the lower pair is the record
    task, teacher          ids; teacher is null where the run trained a teacher
    family, widths         the student: a list of stages, each a list of its blocks' output widths
    recipe_json            every field of the recipe, defaults included
    status                 finished or diverged
    *_accuracy_pct         top-1 in percent: init, best and final on valid; test where it was measured
    curve                  one struct per evaluation: epoch, train_loss, valid_loss, valid_accuracy_pct
    macs, params           of the student at `resolution` with `num_classes`
    weights                SHA-256 of the kept weights, or null
    started_at ... versions_json   where, when and with what the run was trained

The columns that name a row come first and so lie side by side in a file: who is done is read without what they did.
"""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.schema import SCHEMA_VERSION, check_version, damaged, encode_json, read_recipe, verified
from cluster.typed import read_value
from dass.json_text import parse_json
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROW_GROUP = 5_000  # rows that are read together; the rows of a file are sorted, so a run lies in one group
ARROW_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last where Arrow's message quotes damaged bytes
MOST_EXPANDED = 64  # measured: at most 3
_ROW_BYTES = 16
ID_COLUMNS = ("schema", "run_id", "incarnation", "attempt")

_T = TypeVar("_T", bound="DataclassInstance")
_AT_ONCE = 1_000  # rows that are Python objects at a time
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
    "incarnation": pa.int32(),
    "attempt": pa.int32(),
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
    "lane": pa.string(),
    "device": pa.string(),
    "threads": pa.int32(),
    "memory_format": pa.string(),
    "code_version": pa.string(),
    "versions_json": pa.string(),
}
_ADDED: Mapping[str, tuple[int, Any]] = {"incarnation": (2, 0)}  # the version since which, the value in older files
ARROW_SCHEMA = pa.schema([pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in _COLUMNS.items()])


def records_to_table(records: Iterable[Record]) -> pa.Table:
    """One row per record, in the order given; the columns are described at the top."""
    return pa.Table.from_pylist([_to_row(record) for record in records], ARROW_SCHEMA)


def table_to_records(table: pa.Table, key: str) -> Iterator[Record]:
    """The records of a table that `records_to_table` made, in order; every run_id is computed anew.

    Raises:
        SchemaTooNewError: a row was written by a newer version of this package.
        StoreError: a column is missing, or a row is damaged.
    """
    for batch in upgraded(table, key).to_batches(_AT_ONCE):
        for row in batch.to_pylist():
            try:
                record = _from_row(row)
            except (KeyError, TypeError, ValueError) as error:
                raise damaged(key, f"a row that does not fit ({error!r})") from error
            yield verified(record, row["run_id"], key)


def upgraded(table: pa.Table, key: str, columns: Iterable[str] = tuple(_COLUMNS)) -> pa.Table:
    """The `columns` of a table of any version that this package knows, as it would write them today.

    Raises:
        SchemaTooNewError, StoreError: as in `table_to_records`.
    """
    columns = tuple(columns)
    try:
        version = 0 if table.num_rows == 0 else pc.max(table.column("schema")).as_py()
        check_version(version, key)
        for name, (since, value) in _ADDED.items():
            if name not in table.column_names and version < since:
                table = table.append_column(name, pa.repeat(pa.scalar(value, _COLUMNS[name]), table.num_rows))
        if "recipe_json" in columns and version < SCHEMA_VERSION:
            table = _with_todays_recipes(table)
        today = pa.repeat(pa.scalar(SCHEMA_VERSION, _COLUMNS["schema"]), table.num_rows)
        table = table.set_column(table.column_names.index("schema"), "schema", today)
        table = table.select(columns).cast(pa.schema([ARROW_SCHEMA.field(name) for name in columns]))
        table.validate(full=True)  # texts are Unicode, too
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise damaged(key, f"a table that does not have our columns ({error})") from error
    if absent := [name for name in columns if name not in _NULLABLE and table.column(name).null_count]:
        raise damaged(key, f"rows without {', '.join(absent)}")
    return table


def _with_todays_recipes(table: pa.Table) -> pa.Table:
    """The recipes with the fields that they have gained since."""
    encoded = table.column("recipe_json").combine_chunks().dictionary_encode()
    recipes = pa.array([_recipe_json(read_recipe(text)) for text in encoded.dictionary.to_pylist()], pa.string())
    column = pa.DictionaryArray.from_arrays(encoded.indices, recipes).cast(pa.string())
    return table.set_column(table.column_names.index("recipe_json"), "recipe_json", column)


def table_to_parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file, with checksums of its pages."""
    file = io.BytesIO()
    metadata = {"dass_schema": str(SCHEMA_VERSION)}
    pq.write_table(
        table.replace_schema_metadata(metadata),
        file,
        compression="zstd",
        row_group_size=ROW_GROUP,
        write_page_checksum=True,
    )
    return file.getvalue()


def parquet_to_table(data: bytes, key: str) -> pa.Table:
    """All rows of a packed file as this package would write them today.

    Raises:
        SchemaTooNewError: a row was written by a newer version of this package.
        StoreError: the bytes are damaged.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            check_expansion(file.metadata, len(data), key)
            table = file.read()
    except ARROW_ERRORS as error:
        raise not_parquet(key, error) from error
    return upgraded(table, key)


def check_expansion(metadata: Any, size_bytes: int, key: str) -> None:  # noqa: ANN401 - pyarrow has no types
    """Raise StoreError when a file says that it holds more than its length can: a bomb is refused before it is read.

    Every row has a run_id of its own, 128 random bits, and pages of ours become at most MOST_EXPANDED times as long.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    expanded_bytes = sum(group.total_byte_size for group in groups)
    if metadata.num_rows * _ROW_BYTES > size_bytes or expanded_bytes > MOST_EXPANDED * size_bytes:
        raise damaged(
            key, f"{size_bytes} bytes that say they hold {metadata.num_rows} rows of {expanded_bytes} bytes in all"
        )


def not_parquet(key: str, error: Exception) -> Exception:
    """What to tell the user when the bytes under `key` are no Parquet file of ours."""
    return damaged(key, f"bytes that are not Parquet with our columns ({error})")


def are_same(left: pa.Table, right: pa.Table) -> bool:
    """Whether two tables of this package hold the same rows in the same order, bit for bit: a NaN equals itself."""
    return left.schema.names == right.schema.names and all(
        ours.equals(theirs)
        for name in left.column_names
        for ours, theirs in zip(_leaves(left.column(name)), _leaves(right.column(name)), strict=True)
    )


def _leaves(column: pa.ChunkedArray) -> list[pa.Array]:
    """The arrays that a column is made of, numbers as their bits; nested ones as their lengths and their items."""
    return list(_parts(column.combine_chunks()))


def _parts(array: pa.Array) -> Iterator[pa.Array]:
    if pa.types.is_list(array.type):
        yield pc.list_value_length(array)
        yield from _parts(array.flatten())
    elif pa.types.is_struct(array.type):
        yield array.is_valid()
        for part in array.flatten():
            yield from _parts(part)
    else:
        yield array.view(pa.int64()) if pa.types.is_floating(array.type) else array


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
        "recipe_json": _recipe_json(run.recipe),
        "seed": run.seed,
        "status": record.result.status.value,
        "curve": [vars(point) for point in record.result.curve],
        "versions_json": encode_json(record.provenance.versions).decode(),
    }


def _from_row(row: Mapping[str, Any]) -> Record:
    student = Student(tuple(tuple(stage) for stage in row["widths"]), row["family"])
    curve = tuple(CurvePoint(**point) for point in row["curve"])
    status, versions = Status(row["status"]), _read_versions(row["versions_json"])
    return Record(
        run=Run(row["task"], row["teacher"], student, read_recipe(row["recipe_json"]), row["seed"]),
        result=_fill(Result, row, status=status, curve=curve),
        provenance=_fill(Provenance, row, versions=versions),
        **{name: row[name] for name in ("macs", "params", "num_classes", "resolution", "weights")},
    )


def _fill(cls: type[_T], row: Mapping[str, Any], **given: Any) -> _T:  # noqa: ANN401
    """`cls` from the columns that bear its fields' names, but for the fields in `given`."""
    return cls(**{name: row[name] for name in _field_names(cls) if name not in given}, **given)


@lru_cache
def _field_names(cls: type["DataclassInstance"]) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


# A table holds few recipes and versions and many rows: equal ones are read and written once.


@lru_cache(maxsize=1024)
def _recipe_json(recipe: Recipe) -> str:
    return encode_json(recipe).decode()


@lru_cache(maxsize=1024)
def _read_versions(text: str) -> dict[str, str]:
    return read_value(dict[str, str], parse_json(text))
