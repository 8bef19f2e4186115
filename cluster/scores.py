"""What a search on a cluster has scored: searches/<key>/<batch>-<id of its students>.parquet, one object per batch.

A batch is written once, whole. Its name says which students it holds, so a search that asks for others under the same
number, as one with fewer candidates does at its end, neither finds it nor overwrites it. The objects of a finished search
stay: a longer search continues it. Removing them costs time alone.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.objects import ObjectStore
from cluster.schema import damaged
from cluster.tables import ARROW_ERRORS
from dass.errors import ObjectNotFoundError
from dass.records import Student, content_id

SCHEMA = pa.schema([("student", pa.string()), ("score", pa.float32())])


@dataclass(frozen=True)
class ScoreLedger:
    """The scored batches of the search `key`, which names all that proposals and scores depend on."""

    store: ObjectStore
    key: str

    def put(self, number: int, students: Sequence[Student], scores: Sequence[float]) -> None:
        """Write a batch; the scores are float32 values."""
        columns = [pa.array([student.key for student in students]), pa.array(scores, pa.float32())]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), sink)
        self.store.put(self._key(number, students), sink.getvalue())

    def get(self, number: int, students: Sequence[Student]) -> list[float] | None:
        """The scores of a batch in the order of `students`, None where they are not known.

        Raises:
            StoreError: the object is damaged.
        """
        key = self._key(number, students)
        try:
            data = self.store.get(key)
        except ObjectNotFoundError:
            return None
        try:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                if file.schema_arrow != SCHEMA or file.metadata.num_rows != len(students):  # more rows may be a bomb
                    raise damaged(key, "another table than that of its students")
                table = file.read()
                table.validate(full=True)
        except ARROW_ERRORS as error:
            raise damaged(key, f"no such table ({error})") from error
        if table["student"].to_pylist() != [student.key for student in students] or table["score"].null_count:
            raise damaged(key, "other rows than its students")
        return [float(score) for score in table["score"].to_pylist()]

    def _key(self, number: int, students: Sequence[Student]) -> str:
        return f"searches/{self.key}/{number:06d}-{content_id(students)}.parquet"
