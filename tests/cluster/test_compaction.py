import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.compaction import Progress, compact, packed_key
from cluster.database import RunDatabase, loose_key
from cluster.objects import FolderStore, ObjectStore, open_store
from cluster.schema import record_to_json
from cluster.tables import records_to_table, table_to_parquet
from dass.errors import SchemaTooNewError, StoreError
from dass.records import Record, Status
from tests.cluster.builders import RemoteMemoryStore, make_record, make_run
from tests.cluster.s3_server import bucket_url, s3_server, use_endpoint  # noqa: F401 - fixtures
from tests.cluster.stores import Killed, KilledStore, Turns, TurnStore, WrappedStore
from tests.cluster.test_schema import by_hand

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["folder", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return FolderStore(tmp_path) if request.param == "folder" else RemoteMemoryStore()


def make(number: int, *, attempt: int = 1, incarnation: int = 1) -> Record:
    """A record of one of two tasks; every third run diverged."""
    status = Status.FINISHED if number % 3 else Status.DIVERGED
    return make_record(
        make_run(number, task=f"task-{number % 2}"), attempt=attempt, incarnation=incarnation, status=status
    )


def put_loose(store: ObjectStore, records: Iterable[Record]) -> None:
    for record in records:
        store.put(loose_key(record.run.id), record_to_json(record))


def put_packed(store: ObjectStore, records: Iterable[Record], name: str | None = None) -> str:
    """Write the records of one task as a packed file, under its proper name if none is given."""
    records = sorted(records, key=lambda record: record.run.id)
    task = records[0].run.task
    triples = [(r.run.id, r.provenance.incarnation, r.provenance.attempt) for r in records]
    key = packed_key(task, triples) if name is None else f"records/packed/{task}/{name}.parquet"
    store.put(key, table_to_parquet(records_to_table(records)))
    return key


def visible(store: ObjectStore) -> dict[str, Record]:
    """What a reader sees; fails when it sees a run twice."""
    records = list(RunDatabase(store).scan())
    assert len({record.run.id for record in records}) == len(records)
    found = {record.run.id: record for record in records}
    assert RunDatabase(store).finished_ids() == found.keys()
    return found


def run(store: ObjectStore, **options: int) -> Progress:
    """Compact to the end without waiting; the last progress."""
    *_, last = compact(store, 0.0, sleep=lambda _: None, **options)
    return last


def packed_keys(store: ObjectStore) -> list[str]:
    return list(store.list("records/packed/"))


def loose_keys(store: ObjectStore) -> list[str]:
    return list(store.list("records/loose/"))


def test_loose_records_become_one_file_per_task(store: ObjectStore) -> None:
    records = [make(number) for number in range(20)]
    put_loose(store, records)
    before = visible(store)
    assert run(store) == Progress("remove", 20, 20, packed=20, files=2, removed=20)
    assert visible(store) == before == {record.run.id: record for record in records}
    assert loose_keys(store) == []
    by_task = [[r for r in records if r.run.task == task] for task in ("task-0", "task-1")]
    assert packed_keys(store) == [
        packed_key(rs[0].run.task, [(r.run.id, 1, 1) for r in reversed(rs)]) for rs in by_task
    ]


def test_a_packed_file_is_sorted_and_plain_parquet(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    put_loose(store, [make(number) for number in range(0, 40, 2)])
    run(store)
    table = pq.read_table(tmp_path / packed_keys(store)[0])
    assert table.column("run_id").to_pylist() == sorted(make(number).run.id for number in range(0, 40, 2))
    assert set(table.column("task").to_pylist()) == {"task-0"}


def test_a_real_s3_store_is_packed(bucket_url: str) -> None:  # noqa: F811
    store = open_store(bucket_url)
    records = [make(number) for number in range(40)]
    put_loose(store, records[:30])
    put_packed(store, records[28::2])
    before = visible(store)
    assert run(store).packed == 30
    assert visible(store) == before
    assert (loose_keys(store), len(packed_keys(store))) == ([], 2)
    assert RunDatabase(store).get(records[7].run.id) == records[7]


def test_nothing_to_do_is_done_at_once(store: ObjectStore) -> None:
    waits: list[float] = []
    assert list(compact(store, 60.0, sleep=waits.append)) == [Progress("read", 0, 0)]
    put_loose(store, [make(0)])
    assert list(compact(store, 60.0, sleep=waits.append))[-1].removed == 1
    assert waits == [60.0]
    keys = packed_keys(store)
    assert list(compact(store, 60.0, sleep=waits.append))[-1].removed == 0
    assert waits == [60.0]
    assert packed_keys(store) == keys


def test_objects_go_after_the_wait_and_not_before(store: ObjectStore) -> None:
    put_loose(store, [make(number) for number in range(6)])
    seen: list[int] = []
    list(compact(store, 5.0, sleep=lambda _: seen.append(len(loose_keys(store)))))
    assert (seen, loose_keys(store)) == ([6], [])


def test_small_files_are_merged_and_full_ones_stay(store: ObjectStore) -> None:
    even = [make(number) for number in range(0, 40, 2)]
    full = put_packed(store, even[:8])
    for part in (even[8:11], even[11:14]):
        put_packed(store, part)
    put_loose(store, even[14:])
    before = visible(store)
    assert run(store, full_rows=8).files == 1
    assert visible(store) == before
    assert loose_keys(store) == []
    assert sorted(packed_keys(store)) == sorted(
        [full, packed_key("task-0", [(record.run.id, 1, 1) for record in even[8:]])]
    )


def test_what_a_full_file_holds_is_removed_and_the_file_stays(store: ObjectStore) -> None:
    even = [make(number) for number in range(0, 40, 2)]
    full = put_packed(store, even[:10])
    put_loose(store, [*even[:10], *even[10:13]])
    put_packed(store, even[3:5])  # what a race of two compactions leaves
    assert run(store, full_rows=10).packed == 13
    assert visible(store) == {record.run.id: record for record in even[:13]}
    assert sorted(packed_keys(store)) == sorted([full, packed_key("task-0", [(r.run.id, 1, 1) for r in even[10:13]])])


def test_the_winner_of_a_run_stays_the_winner(store: ObjectStore) -> None:
    for numbers in itertools.product((0, 2), repeat=3):  # which of two leases is lower, in three places
        first, second, third = (make(4, attempt=1 + number) for number in numbers)
        put_packed(store, [first, make(6)], "a")
        put_packed(store, [second, make(8)], "b")
        put_loose(store, [third, make(10)])
        before = visible(store)
        run(store)
        assert visible(store) == before
        assert len(packed_keys(store)) == 1
        for key in [*packed_keys(store), *loose_keys(store)]:
            store.delete(key)


def test_a_file_of_a_wrong_name_or_with_a_run_twice_is_put_right(store: ObjectStore) -> None:
    put_packed(store, [make(0, attempt=2), make(0), make(2)], "foreign")
    put_packed(store, [make(0), make(2)])
    before = visible(store)
    run(store)
    assert visible(store) == before
    assert packed_keys(store) == [packed_key("task-0", [(make(n).run.id, 1, 1) for n in (0, 2)])]


def test_records_of_version_1_are_packed(store: ObjectStore) -> None:
    golden = ROOT / "tests" / "golden"
    finished, diverged = by_hand(1)
    store.put(loose_key(diverged.run.id), (golden / "diverged_v1.json").read_bytes())
    store.put(f"records/packed/{finished.run.task}/old.parquet", (golden / "records_v1.parquet").read_bytes())
    run(store)
    assert len(packed_keys(store)) == 1
    found = visible(store)
    assert {run_id: repr(record) for run_id, record in found.items()} == {r.run.id: repr(r) for r in by_hand(1)}


def test_few_records_are_in_memory_at_a_time(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    records = [make(number) for number in range(2500)]
    for record in records:  # not through `put`, which syncs each to the disk
        path = tmp_path / loose_key(record.run.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record_to_json(record))
    last = run(store, held_rows=600, full_rows=10_000)
    assert (last.packed, last.files > 2) == (2500, True)
    assert RunDatabase(store).finished_ids() == {record.run.id for record in records}
    assert loose_keys(store) == []
    run(store)
    assert len(packed_keys(store)) == 2
    assert visible(store) == {record.run.id: record for record in records}


def test_damaged_records_stay_and_are_named_when_all_else_is_done(store: ObjectStore) -> None:
    put_loose(store, [make(number) for number in range(6)])
    bad = {loose_key(make(7).run.id): b"{", loose_key(make(8).run.id): record_to_json(make(9))}
    for key, data in bad.items():
        store.put(key, data)
    with pytest.raises(StoreError, match=r"got 2 that are damaged and stay in place: .*; delete these") as caught:
        run(store)
    assert all(key in str(caught.value) for key in bad)
    assert {key: store.get(key) for key in loose_keys(store)} == bad
    assert len(packed_keys(store)) == 2


def test_a_damaged_packed_file_ends_it_before_anything_goes(store: ObjectStore) -> None:
    put_loose(store, [make(0), make(2)])
    put_packed(store, [make(4)])
    store.put("records/packed/task-0/1.parquet", b"PAR1 no PAR1")
    before = {key: store.get(key) for key in store.list()}
    with pytest.raises(StoreError, match=r"1\.parquet must hold"):
        run(store)
    assert {key: store.get(key) for key in store.list()} == before


def test_newer_records_ask_for_an_upgrade(store: ObjectStore) -> None:
    put_loose(store, [make(0)])
    store.put(loose_key(make(1).run.id), b'{"schema":99}')
    with pytest.raises(SchemaTooNewError):
        run(store)
    assert len(loose_keys(store)) == 2


class AlteringStore(WrappedStore):
    """Says that it wrote a packed file, and wrote another one."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key.endswith(".parquet"):
            data = table_to_parquet(records_to_table([make(0, attempt=5), make(2)]))
        return super().put_if_absent(key, data)


def test_nothing_goes_when_what_was_written_is_not_what_is_read(store: ObjectStore) -> None:
    put_loose(store, [make(0), make(2)])
    with pytest.raises(StoreError, match="other records than were packed"):
        run(AlteringStore(store))
    assert len(loose_keys(store)) == 2


def scene(store: ObjectStore) -> None:
    """What compactions that were killed, or that met, may leave: 2 tasks, full and small files, runs in two places."""
    put_packed(store, [make(number) for number in (0, 2, 4, 6)])  # full
    put_packed(store, [make(2), make(8)])
    put_packed(store, [make(8, incarnation=2), make(10)])
    put_loose(store, [make(4), make(8, attempt=7), make(12), make(1), make(3)])


def test_a_kill_at_any_operation_loses_and_changes_nothing() -> None:
    start = RemoteMemoryStore()
    scene(start)
    before = visible(start)

    def killed(last: int, *, is_after: bool) -> bool:
        real = RemoteMemoryStore(dict(start.objects), is_remote=False)
        store = KilledStore(real, last, is_after=is_after)
        try:
            run(store, full_rows=4)
        except Killed:
            was_killed = True
        else:
            was_killed = False
        assert visible(real) == before
        run(real, full_rows=4)
        assert visible(real) == before
        assert loose_keys(real) == []
        assert len(packed_keys(real)) == 3
        return was_killed

    num_killed = 0
    while killed(num_killed, is_after=num_killed % 2 == 0):
        killed(num_killed, is_after=num_killed % 2 == 1)
        num_killed += 1
    assert num_killed > 20


@pytest.mark.parametrize("seed", range(25))
def test_compactions_a_writer_and_a_reader_in_any_order(seed: int, tmp_path: Path) -> None:
    real = FolderStore(tmp_path)
    scene(real)
    before = visible(real)
    added = [make(number) for number in (5, 7, 14, 16, 18)]
    turns = Turns(random.Random(seed), patience=(0.0, 0.8, 0.95)[seed % 3])
    seen: list[dict[str, Record]] = []

    def compact_twice() -> None:
        for _ in range(2):
            list(compact(TurnStore(real, turns), 0.0, full_rows=4, sleep=lambda _: turns.step()))

    def write() -> None:
        database = RunDatabase(TurnStore(real, turns))
        for record in added:
            database.add(record)

    def read() -> None:
        store = TurnStore(real, turns)
        for _ in range(3):
            records = list(RunDatabase(store).scan())
            seen.append({record.run.id: record for record in records})
            assert len(seen[-1]) == len(records)

    turns.run({"compaction 1": compact_twice, "compaction 2": compact_twice, "writer": write, "reader": read})
    after = before | {record.run.id: record for record in added}
    for found in seen:
        assert before.items() <= found.items() <= after.items()
    assert visible(real) == after
    run(real, full_rows=4)
    run(real, full_rows=4)
    assert visible(real) == after
    assert loose_keys(real) == []


KILLER = """
import os, random, signal, sys, time
from cluster.compaction import compact
from cluster.objects import FolderStore
store, seed, until = FolderStore(__import__("pathlib").Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
chance = random.Random(seed)
kills = 0
while time.time() < until:
    child = os.fork()
    if child == 0:
        while True:
            list(compact(store, 0.05, full_rows=40))
    time.sleep(chance.uniform(0.02, 0.4))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kills += 1
print(kills)
"""
WRITER = """
import sys, time
from cluster.database import RunDatabase
from cluster.objects import FolderStore
from tests.cluster.test_compaction import make
database, until = RunDatabase(FolderStore(__import__("pathlib").Path(sys.argv[1]))), float(sys.argv[3])
number = 100
while time.time() < until:
    number += database.add(make(number))
print(number)
"""


def test_real_processes_that_are_killed_lose_and_change_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    put_loose(store, [make(number) for number in range(60)])
    before = visible(store)
    until = time.time() + 5.0
    programs = [(KILLER, 1), (KILLER, 2), (WRITER, 3)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(seed), str(until)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        for code, seed in programs
    ]
    num_scans = 0
    try:
        while time.time() < until:
            found = visible_during(store)
            assert before.items() <= found.items()
            assert all(record == make(_number(record)) for record in found.values())
            num_scans += 1
        *kills, written = (int(process.communicate(timeout=60)[0]) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert num_scans > 0
    assert min(kills) > 0
    after = before | {make(number).run.id: make(number) for number in range(100, written)}
    assert visible(store) == after
    run(store)
    assert (visible(store), loose_keys(store)) == (after, [])


def visible_during(store: ObjectStore) -> dict[str, Record]:
    """What a reader sees while others work; fails when it sees a run twice."""
    records = list(RunDatabase(store).scan())
    assert len({record.run.id for record in records}) == len(records)
    return {record.run.id: record for record in records}


def _number(record: Record) -> int:
    return record.run.student.widths[1][1] - 1
