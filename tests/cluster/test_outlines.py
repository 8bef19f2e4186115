"""Outlines of records, compared with the records that a scan reads whole."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.compaction import compact
from cluster.database import RunDatabase, loose_key
from cluster.objects import FolderStore, ObjectStore
from cluster.outlines import record_outline
from cluster.schema import record_to_json
from dass.records import Record, Status
from tests.cluster.builders import RemoteMemoryStore, make_record, make_run

RECORDS = [
    replace(
        make_record(make_run(number, task=f"task-{number % 3}", teacher=None if number < 3 else "e" * 64)),
        macs=1000 + number,
    )
    for number in range(12)
] + [make_record(make_run(99), status=Status.DIVERGED)]


def fill(store: ObjectStore, records: list[Record]) -> None:
    for record in records:
        store.put(loose_key(record.run.id), record_to_json(record))


def pack(store: ObjectStore) -> None:
    for _ in compact(store, 0.0):
        pass


@pytest.mark.parametrize("num_packed", [0, 6, 13])
@pytest.mark.parametrize("is_remote", [False, True])
def test_outlines_say_what_the_records_say(num_packed: int, is_remote: bool, tmp_path: Path) -> None:
    store = RemoteMemoryStore() if is_remote else FolderStore(tmp_path)
    fill(store, RECORDS[:num_packed])
    pack(store)
    fill(store, RECORDS[num_packed:])
    found = RunDatabase(store).outlines()
    expected = {record.run.id: record_outline(record) for record in RunDatabase(store).scan()}
    assert found.run_ids == expected.keys()
    assert found.known == expected
    assert found.ended_at.keys() == {record.run.id for record in RECORDS[num_packed:]}
    assert all(abs(datetime.now(UTC) - at) < timedelta(minutes=5) for at in found.ended_at.values())


def test_of_many_loose_records_only_the_newest_and_the_wanted_are_read(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    fill(store, RECORDS)
    times = {record.run.id: 1_700_000_000 + number for number, record in enumerate(RECORDS)}
    for run_id, time in times.items():
        os.utime(tmp_path / loose_key(run_id), (time, time))
    teacher = RECORDS[0].run.id
    found = RunDatabase(store).outlines([teacher], most_loose=3)
    assert found.run_ids == times.keys()
    assert found.known.keys() >= {teacher, *(record.run.id for record in RECORDS[-3:])}
    assert len(found.known) == 4


def test_a_compaction_between_list_and_read_loses_nothing() -> None:
    packed = RemoteMemoryStore()
    fill(packed, RECORDS)
    store = RemoteMemoryStore(dict(packed.objects))
    pack(packed)
    gone = loose_key(RECORDS[4].run.id)
    store.gone_at_get[gone] = {key: data for key, data in packed.objects.items() if "packed" in key}
    found = RunDatabase(store).outlines()
    assert found.known == {record.run.id: record_outline(record) for record in RECORDS}
