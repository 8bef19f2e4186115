import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.database import RunDatabase, loose_key
from cluster.objects import Entry, FolderStore, ObjectStore
from cluster.schema import record_to_json
from cluster.tables import records_to_table
from dass.errors import SchemaTooNewError, StoreError
from dass.records import Record
from tests.cluster.builders import RemoteMemoryStore, make_record, make_run


def packed(records: Iterable[Record]) -> bytes:
    file = io.BytesIO()
    pq.write_table(records_to_table(records), file)
    return file.getvalue()


@pytest.fixture(params=["folder", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return FolderStore(tmp_path) if request.param == "folder" else RemoteMemoryStore()


def test_a_record_is_one_object_under_its_run_id(store: ObjectStore) -> None:
    record = make_record(make_run(0))
    assert RunDatabase(store).add(record)
    assert list(store.list()) == [f"records/loose/{record.run.id[:2]}/{record.run.id}.json"]


def test_the_first_record_of_a_run_stays(store: ObjectStore) -> None:
    database, run = RunDatabase(store), make_run(0)
    assert database.add(make_record(run, attempt=2))
    assert not database.add(make_record(run, attempt=1))
    assert database.get(run.id) == make_record(run, attempt=2)


def test_a_packed_run_takes_no_loose_record(store: ObjectStore) -> None:
    run = make_run(0)
    store.put("records/packed/task-a/1.parquet", packed([make_record(run)]))
    assert not RunDatabase(store).add(make_record(run, attempt=7))
    assert list(store.list("records/loose/")) == []


def test_an_empty_store_has_nothing(store: ObjectStore) -> None:
    database = RunDatabase(store)
    assert database.finished_ids() == set()
    assert database.get("0" * 32) is None
    assert list(database.scan()) == []


def test_loose_and_packed_records_are_found_together(store: ObjectStore) -> None:
    records = [make_record(make_run(number)) for number in range(9)]
    database = RunDatabase(store)
    for record in records[:5]:
        database.add(record)
    store.put("records/packed/task-a/1.parquet", packed(records[4:7]))
    store.put("records/packed/task-b/2.parquet", packed(records[6:]))
    assert database.finished_ids() == {record.run.id for record in records}
    found = {record.run.id: record for record in database.scan()}
    assert found == {record.run.id: record for record in records}
    assert len(list(database.scan())) == 9
    assert [database.get(record.run.id) for record in records] == records


def test_a_scan_of_some_runs_gives_those_that_have_a_record(store: ObjectStore) -> None:
    records = [make_record(make_run(number)) for number in range(6)]
    database = RunDatabase(store)
    for record in records[:3]:
        database.add(record)
    store.put("records/packed/task-a/1.parquet", packed(records[3:]))
    wanted = {records[0].run.id, records[4].run.id, make_run(99).id}
    assert {record.run.id for record in database.scan(wanted)} == {records[0].run.id, records[4].run.id}


def test_a_scan_of_many_runs_gives_those_that_have_a_record(store: ObjectStore) -> None:
    database = RunDatabase(store)
    for number in range(3):
        database.add(make_record(make_run(number)))
    wanted = [make_run(number).id for number in range(1, 100)]
    assert {record.run.id for record in database.scan(wanted)} == set(wanted[:2])


def test_packed_wins_over_loose_and_the_lowest_attempt_among_packed(store: ObjectStore) -> None:
    run = make_run(0)
    database = RunDatabase(store)
    database.add(make_record(run, attempt=1))
    store.put("records/packed/task-a/1.parquet", packed([make_record(run, attempt=5), make_record(run, attempt=4)]))
    store.put("records/packed/task-a/2.parquet", packed([make_record(run, attempt=3), make_record(run, attempt=3)]))
    store.put("records/packed/task-a/3.parquet", packed([make_record(run, attempt=9)]))
    assert list(database.scan()) == [make_record(run, attempt=3)]
    assert database.get(run.id) == make_record(run, attempt=3)


def test_the_lowest_incarnation_wins_before_the_lowest_attempt(store: ObjectStore) -> None:
    run = make_run(0)
    first = make_record(run, incarnation=1, attempt=9)
    store.put("records/packed/task-a/1.parquet", packed([make_record(run, incarnation=2, attempt=1), first]))
    store.put("records/packed/task-a/2.parquet", packed([make_record(run, incarnation=3, attempt=1)]))
    assert list(RunDatabase(store).scan()) == [first]


def test_finished_ids_read_no_loose_object_and_each_packed_file_once() -> None:
    store = RemoteMemoryStore()
    database = RunDatabase(store)
    for number in range(20):
        database.add(make_record(make_run(number)))
    store.put("records/packed/task-a/1.parquet", packed([make_record(make_run(20))]))
    store.reads.clear()
    assert len(database.finished_ids()) == 21
    assert len(database.finished_ids()) == 21
    assert store.reads == ["records/packed/task-a/1.parquet"]


def test_pending_are_the_runs_without_a_record_in_their_order() -> None:
    planned = [make_run(number) for number in range(9, 0, -1)]
    store = RemoteMemoryStore()
    assert RunDatabase(store).pending(planned) == planned
    for run in (planned[2], planned[4], make_run(20)):
        RunDatabase(store).add(make_record(run))
    elsewhere = [make_record(run) for run in (planned[0], planned[4], make_run(21))]
    store.put("records/packed/task-a/1.parquet", packed(elsewhere))
    database = RunDatabase(store)
    assert database.pending(planned) == [planned[number] for number in (1, 3, 5, 6, 7, 8)]
    assert database.pending([planned[1], planned[0], planned[1]]) == [planned[1], planned[1]]
    assert database.pending([]) == []


@pytest.mark.parametrize("count", [0, 999, 1000, 1001])
def test_loose_records_are_listed_before_packed_ones_and_many_of_them_in_shards(count: int) -> None:
    ids = [f"{number:08x}"[::-1] for number in range(count)]
    store = RemoteMemoryStore({loose_key(run_id): b"" for run_id in ids})
    assert RunDatabase(store).finished_ids() == set(ids)
    shards = [f"records/loose/{number:02x}/" for number in range(256)] if count >= 1000 else []
    assert store.lists[0] == "records/loose/"
    assert sorted(store.lists[1:-1]) == shards
    assert store.lists[-1] == "records/packed/"


def test_a_scan_starts_over_when_a_compaction_takes_an_object_away() -> None:
    store = RemoteMemoryStore()
    database = RunDatabase(store)
    records = [make_record(make_run(number)) for number in range(8)]
    for record in records:
        database.add(record)
    taken = sorted(record.run.id for record in records)[5]
    store.gone_at_get[loose_key(taken)] = {"records/packed/task-a/1.parquet": packed(records)}
    found = [record.run.id for record in database.scan()]
    assert sorted(found) == sorted(record.run.id for record in records)


def test_a_packed_file_that_is_packed_again_is_followed() -> None:
    records = [make_record(make_run(number)) for number in range(4)]
    old, new = "records/packed/task-a/old.parquet", "records/packed/task-a/new.parquet"
    for look in (
        lambda database: database.finished_ids() == {record.run.id for record in records},
        lambda database: len(list(database.scan())) == 4,
        lambda database: database.get(records[0].run.id) == records[0],
        lambda database: not database.add(records[3]),
    ):
        store = RemoteMemoryStore({old: packed(records[:2])}, {old: {new: packed(records)}})
        assert look(RunDatabase(store))


def test_an_interrupted_scan_and_a_second_one_do_not_disturb_each_other(store: ObjectStore) -> None:
    records = [make_record(make_run(number)) for number in range(4)]
    store.put("records/packed/task-a/1.parquet", packed(records[:2]))
    store.put("records/packed/task-b/2.parquet", packed(records[2:]))
    database = RunDatabase(store)
    first = database.scan()
    begun = [next(first)]
    store.delete("records/packed/task-b/2.parquet")
    store.put("records/packed/task-b/3.parquet", packed(records[2:]))
    assert len(list(database.scan())) == 4
    assert {record.run.id for record in [*begun, *first]} == {record.run.id for record in records}


class VanishingStore(RemoteMemoryStore):
    """Its packed file is always listed and never there."""

    def list(self, prefix: str = "") -> Iterator[str]:
        return iter(["records/packed/task-a/1.parquet"] if prefix == "records/packed/" else [])

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return (Entry(key, 100, datetime.now(UTC)) for key in self.list(prefix))


def test_a_store_that_never_settles_is_an_error_and_no_endless_loop() -> None:
    database = RunDatabase(VanishingStore())
    for look in (database.finished_ids, lambda: list(database.scan())):
        with pytest.raises(StoreError, match="let the compaction end and try again"):
            look()


def test_damaged_objects_are_named(store: ObjectStore) -> None:
    run = make_run(0)
    store.put(loose_key(run.id), b"{")
    with pytest.raises(StoreError, match=rf"{run.id}\.json must hold"):
        list(RunDatabase(store).scan())
    store.put("records/packed/task-a/1.parquet", b"PAR1 not really")
    with pytest.raises(StoreError, match=r"1\.parquet must hold"):
        RunDatabase(store).finished_ids()


def test_a_record_under_the_wrong_key_is_refused(store: ObjectStore) -> None:
    store.put(loose_key(make_run(1).id), record_to_json(make_record(make_run(0))))
    with pytest.raises(StoreError, match=make_run(1).id):
        RunDatabase(store).get(make_run(1).id)


def test_newer_packed_files_ask_for_an_upgrade(store: ObjectStore) -> None:
    table = records_to_table([make_record(make_run(0))])
    newer = table.set_column(0, "schema", [[99]])
    file = io.BytesIO()
    pq.write_table(newer, file)
    store.put("records/packed/task-a/1.parquet", file.getvalue())
    with pytest.raises(SchemaTooNewError, match="upgrade the package"):
        RunDatabase(store).finished_ids()
