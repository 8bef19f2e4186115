import io
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.database import RunDatabase
from cluster.objects import Entry
from cluster.packed import PackedIndex, id_array, read_ids, read_rows
from cluster.tables import ROW_GROUP, records_to_table, table_to_parquet, table_to_records
from dass.errors import ObjectNotFoundError, StoreError
from dass.records import Record
from tests.cluster.builders import RemoteMemoryStore, make_record, make_run

KEY = "records/packed/task-a/1.parquet"
NUM_RUNS = 2 * ROW_GROUP + 500


@dataclass
class CountingStore(RemoteMemoryStore):
    """Remembers which ranges were read, and can lose its objects after some of them."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    lost_after: int | None = None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if len(self.ranges) == self.lost_after:
            raise ObjectNotFoundError(key)
        self.ranges.append((start, length))
        return self.objects[key][start : start + length]


@pytest.fixture(scope="module")
def packed() -> tuple[list[Record], bytes]:
    """A file of several groups of rows, larger than what is fetched of a file's end."""
    records = sorted((make_record(make_run(n), attempt=n) for n in range(NUM_RUNS)), key=lambda r: r.run.id)
    return records, table_to_parquet(records_to_table(records))


@pytest.fixture
def store(packed: tuple[list[Record], bytes]) -> CountingStore:
    return CountingStore({KEY: packed[1]})


def entry_of(store: RemoteMemoryStore) -> Entry:
    (entry,) = store.entries("records/packed/")
    return entry


def test_ids_are_read_in_few_ranges_and_not_the_whole_file(
    store: CountingStore, packed: tuple[list[Record], bytes]
) -> None:
    file = next(read_ids(store, [entry_of(store)]))
    assert file.ids.astype(str).tolist() == [record.run.id for record in packed[0]]
    assert file.attempts.tolist() == [record.provenance.attempt for record in packed[0]]
    assert file.task == "task-a"
    assert len(store.ranges) <= 1 + NUM_RUNS // ROW_GROUP + 1
    assert store.reads == []


def test_one_run_costs_its_group_of_rows(store: CountingStore, packed: tuple[list[Record], bytes]) -> None:
    for row in (0, ROW_GROUP - 1, ROW_GROUP, NUM_RUNS - 1):
        store.ranges.clear()
        (record,) = table_to_records(read_rows(store, entry_of(store), np.array([row])), KEY)
        assert record == packed[0][row]
        assert sum(length for _, length in store.ranges) < len(store.objects[KEY])
    assert store.reads == []


def test_rows_of_several_groups_come_in_order(store: CountingStore, packed: tuple[list[Record], bytes]) -> None:
    for rows in ([3, 700, ROW_GROUP - 1], [5, ROW_GROUP + 5, 2 * ROW_GROUP + 5], list(range(0, NUM_RUNS, 50))):
        read = list(table_to_records(read_rows(store, entry_of(store), np.array(rows)), KEY))
        assert read == [packed[0][row] for row in rows]


@pytest.mark.parametrize("lost_after", [0, 1, 2])
def test_a_file_that_goes_while_it_is_read_is_not_found(store: CountingStore, lost_after: int) -> None:
    store.lost_after = lost_after
    entry = entry_of(store)
    with pytest.raises(ObjectNotFoundError):
        list(read_ids(store, [entry]))


def test_a_file_of_another_length_than_listed_is_damaged(store: CountingStore) -> None:
    entry = entry_of(store)
    store.objects[KEY] = store.objects[KEY][:-100]
    with pytest.raises(StoreError, match=r"1\.parquet must hold"):
        list(read_ids(store, [entry]))


def ids_column(ids: list[str | None]) -> bytes:
    """A file of one group of rows for each two of these run ids, and of leases (7, i)."""
    rows = records_to_table([make_record(make_run(0))]).take(pa.array([0] * len(ids), pa.int64()))
    columns = {"run_id": ids, "incarnation": [7] * len(ids), "attempt": list(range(len(ids)))}
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(
            place, rows.schema.field(name).with_nullable(True), pa.array(values, rows.schema.types[place])
        )
    out = io.BytesIO()
    pq.write_table(rows, out, row_group_size=2, write_page_checksum=True)
    return out.getvalue()


@pytest.mark.parametrize("ids", [["a"], ["aa", "b", "cccc"], ["x" * 40, "0_.=+@-", "A"], []])
def test_ids_may_have_any_lengths(ids: list[str]) -> None:
    store = CountingStore({KEY: ids_column([*ids])})
    file = next(read_ids(store, [entry_of(store)]))
    assert file.ids.astype(str).tolist() == ids
    assert (file.incarnations.tolist(), file.attempts.tolist()) == ([7] * len(ids), list(range(len(ids))))


@pytest.mark.parametrize("wrong", ["", "a/b", "../a", "a b", "a\n", "\u00e9", "a\0", ".a", None])
def test_a_text_that_is_no_run_id_is_damage(wrong: str | None) -> None:
    store = CountingStore({KEY: ids_column(["a", "b", wrong])})
    with pytest.raises(StoreError, match=r"1\.parquet"):
        next(read_ids(store, [entry_of(store)]))


def test_the_index_finds_what_it_holds_and_nothing_else(store: CountingStore) -> None:
    index = RunDatabase(store).packed()
    ids = [make_run(n).id for n in range(NUM_RUNS + 50)]
    assert index.has(ids).tolist() == [True] * NUM_RUNS + [False] * 50
    assert (ids[0] in index, ids[-1] in index, "" in index, "f" * 64 in index) == (True, False, False, False)
    assert sorted(index.run_ids()) == sorted(ids[:NUM_RUNS])
    assert len(index) == NUM_RUNS


def test_an_empty_index_holds_nothing() -> None:
    index = PackedIndex()
    assert (len(index), "0" * 32 in index, list(index.run_ids()), list(index.rows(None))) == (0, False, [], [])
    assert id_array([]).tolist() == []
