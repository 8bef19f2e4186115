"""All records as one file for other tools: Parquet or CSV, one row per run.

The columns are those of the packed files (cluster/tables.py) and, flattened for who wants no nested types: task_name,
student (its key), and every field of the recipe as recipe_<field>. In CSV the nested columns widths and curve are JSON
texts, and what is unknown is empty.
"""

import csv
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.schema import encode_json, plain
from cluster.tables import ARROW_SCHEMA, records_to_table
from dass.records import Recipe, Record

_AT_ONCE = 1_000  # rows in memory at a time
_KINDS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


class _Writer(Protocol):
    def __enter__(self) -> "_Writer": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write_table(self, table: pa.Table) -> None: ...


def export_schema() -> pa.Schema:
    """The columns of an export."""
    flat = [("task_name", pa.string()), ("student", pa.string())]
    flat += [(f"recipe_{f.name}", _kind(f.type)) for f in dataclasses.fields(Recipe)]
    return pa.schema([*ARROW_SCHEMA, *(pa.field(name, kind) for name, kind in flat)])


def write_export(records: Iterable[Record], task_names: Mapping[str, str], path: Path) -> Iterator[int]:
    """Write the records to `path`, whose suffix .csv or .parquet decides the format; yields the rows written so far.

    Raises:
        OSError: the disk is full or the path cannot be written; what was written of the file stays there.
    """
    with _writer(path) as writer:
        done = 0
        writer.write_table(_table([], task_names))
        for some in _batches(records):
            writer.write_table(_table(some, task_names))
            done += len(some)
            yield done


def _writer(path: Path) -> _Writer:
    if path.suffix == ".csv":
        return _CsvWriter(path)
    writer: _Writer = pq.ParquetWriter(path, export_schema(), compression="zstd")
    return writer


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    source = iter(records)
    while some := list(itertools.islice(source, _AT_ONCE)):
        yield some


def _table(records: list[Record], task_names: Mapping[str, str]) -> pa.Table:
    table = records_to_table(records)
    flat = [
        {
            "task_name": task_names.get(record.run.task),
            "student": record.run.student.key,
            **{f"recipe_{name}": value for name, value in dataclasses.asdict(record.run.recipe).items()},
        }
        for record in records
    ]
    for field in list(export_schema())[len(ARROW_SCHEMA) :]:
        table = table.append_column(field, pa.array([row[field.name] for row in flat], field.type))
    return table


def _kind(annotation: Any) -> pa.DataType:  # noqa: ANN401
    """The column type of a recipe's field: a number where it is one, also where it may be unset, else a text."""
    return next((_KINDS[kind] for kind in (annotation, *get_args(annotation)) if kind in _KINDS), pa.string())


class _CsvWriter:
    """Tables as lines of a CSV file, the column names first."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(export_schema().names)

    def __enter__(self) -> "_CsvWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write_table(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self._rows.writerow([_cell(value) for value in row.values()])


def _cell(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return encode_json(value).decode()
    return json.dumps(value) if isinstance(value, bool) else plain(value)
