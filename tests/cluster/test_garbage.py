from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.checkpoints import Token, put_checkpoint
from cluster.compaction import compact
from cluster.database import RunDatabase
from cluster.documents import put_document, put_latest
from cluster.garbage import find_garbage, remove
from cluster.objects import FolderStore
from cluster.plan import Plan
from cluster.queue import claim_incarnation
from cluster.teachers import put_own_teacher
from cluster.weights import put_blob
from dass.errors import StoreError
from dass.kd.teacher import Teacher
from dass.records import Task
from dass.tensors import pack_tensors, sha256
from tests.cluster.builders import make_record, make_run

NONE = timedelta(0)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def reasons(store: FolderStore, min_age: timedelta = NONE) -> Mapping[str, str]:
    return {garbage.key: garbage.reason for garbage in find_garbage(store, min_age)}


def test_blobs_that_something_names_stay(store: FolderStore) -> None:
    shas = [put_blob(store, bytes([number])) for number in range(7)]
    put_latest(store, "predictor", {"predictor": shas[0], "curve": [{"episode": 1}]})
    put_document(store, "plan", "p", {"deep": [{"er": [shas[1], None, 1.5]}]})
    store.put("tuning/k/trials/0.json", b'{"schema":1,"value":{"predictor":"%s"}}' % shas[2].encode())
    database = RunDatabase(store)
    database.add(replace(make_record(make_run(0)), weights=shas[3]))
    list(compact(store, 0.0))
    database.add(replace(make_record(make_run(1)), weights=shas[4]))
    assert reasons(store) == {
        f"blobs/{shas[5]}": "no record and no document names it",
        f"blobs/{shas[6]}": "no record and no document names it",
    }


def test_an_own_teacher_stays(store: FolderStore) -> None:
    teacher = Teacher(sha256(pack_tensors({})), make_run(0).student, {}, 50.0)
    put_own_teacher(RunDatabase(store), teacher, "task-a")
    assert reasons(store) == {}


def test_packs_without_a_task_go(store: FolderStore) -> None:
    task = Task("t", "flowers", "a" * 64, 32, ("daisy", "rose"), (0, 1), (0,), (1,), (2,))
    put_document(store, "task", "t", vars(task))
    for sha in ("a" * 64, "b" * 64):
        store.put(f"data/{sha}/pack.safetensors", b"pixels")
    assert reasons(store) == {f"data/{'b' * 64}/pack.safetensors": "no task is cut from it"}


def test_checkpoints_that_nobody_goes_on_from_go(store: FolderStore) -> None:
    pending, done, unknown = make_run(0), make_run(1), make_run(2)
    plan = Plan("p", (pending, done))
    put_document(store, "plan", plan.id, plan.to_document())
    RunDatabase(store).add(make_record(done))
    for run, token in ((pending, Token(1, 9)), (pending, Token(2, 3)), (done, Token(2, 4)), (unknown, Token(2, 5))):
        put_checkpoint(store, run.id, token, b"state")
    assert reasons(store) == {
        f"checkpoints/{pending.id}/1-9": "a later lease has one",
        f"checkpoints/{done.id}/2-4": "its run has a record",
        f"checkpoints/{unknown.id}/2-5": "no plan names its run",
    }


def test_a_meta_training_under_way_stays_until_a_newer_predictor_is_there(store: FolderStore) -> None:
    put_latest(store, "predictor", {"key": "older"})
    put_checkpoint(store, "0" * 32, Token(0, 0), b"state")
    assert reasons(store) == {}
    put_latest(store, "predictor", {"key": "newer"})
    assert reasons(store) == {f"checkpoints/{'0' * 32}/0-0": "a newer predictor is there"}


def test_old_claims_go_and_no_number_comes_twice(store: FolderStore) -> None:
    assert [claim_incarnation(store) for _ in range(12)] == list(range(1, 13))
    garbage = find_garbage(store, NONE)
    assert {piece.key for piece in garbage} == {f"queue/{number}" for number in range(1, 10)}
    assert list(remove(store, garbage)) == list(range(1, 10))
    assert claim_incarnation(store) == 13


def test_what_is_young_stays(store: FolderStore) -> None:
    sha = put_blob(store, b"data")
    assert reasons(store, timedelta(hours=1)) == {}
    later = datetime.now(UTC) + timedelta(hours=2)
    (garbage,) = find_garbage(store, timedelta(hours=1), later)
    assert (garbage.key, garbage.size_bytes) == (f"blobs/{sha}", 4)
    assert store.exists(garbage.key)
    list(remove(store, [garbage]))
    assert not store.exists(garbage.key)
    assert find_garbage(store, timedelta(hours=1), later) == []


def test_a_document_that_cannot_be_read_stops_the_search(store: FolderStore) -> None:
    put_blob(store, b"data")
    store.put("documents/latest/predictor.json", b"{")
    with pytest.raises(StoreError, match=r"predictor\.json must hold"):
        find_garbage(store, NONE)


def test_other_objects_are_never_garbage(store: FolderStore) -> None:
    for key in ("schema.json", "report.html", "events/lane/1.jsonl", "lanes/1.json", "something/else"):
        store.put(key, b"{}")
    assert reasons(store) == {}
