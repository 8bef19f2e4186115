"""Teachers from the store: trained by a run, or brought by the user."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.database import RunDatabase
from cluster.objects import FolderStore
from cluster.teachers import check_teachers, load_teacher, put_own_teacher
from cluster.weights import put_weights
from dass.errors import ObjectNotFoundError, StoreError
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.records import Status
from dass.seeding import generator
from dass.spaces import get_space
from dass.tensors import pack_tensors, sha256
from tests.cluster.builders import make_record, make_run

SPACE = get_space("smoke")


@pytest.fixture
def database(tmp_path: Path) -> RunDatabase:
    return RunDatabase(FolderStore(tmp_path / "store"))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(build(SPACE.largest, 3, generator("teacher")).state_dict())


def test_a_run_that_kept_its_weights_is_a_teacher(database: RunDatabase, state: dict[str, torch.Tensor]) -> None:
    run = replace(make_run(0), teacher=None, student=SPACE.largest)
    record = replace(make_record(run), weights=put_weights(database.store, state))
    database.add(record)
    teacher = load_teacher(database, run.id, "task")
    assert (teacher.id, teacher.student) == (run.id, SPACE.largest)
    assert teacher.accuracy_pct == record.result.best_accuracy_pct
    assert all(torch.equal(teacher.state[name], tensor) for name, tensor in state.items())


def test_an_own_teacher_is_known_by_the_hash_of_its_weights(
    database: RunDatabase, state: dict[str, torch.Tensor]
) -> None:
    own = Teacher(sha256(pack_tensors(state)), SPACE.largest, state, 61.5)
    put_own_teacher(database, own, "task")
    loaded = load_teacher(database, own.id, "task")
    assert (loaded.id, loaded.student, loaded.accuracy_pct) == (own.id, SPACE.largest, 61.5)
    put_own_teacher(database, replace(own, accuracy_pct=40.0), "other")  # the same weights are worth less elsewhere
    assert load_teacher(database, own.id, "task").accuracy_pct == 61.5
    assert load_teacher(database, own.id, "other").accuracy_pct == 40.0
    with pytest.raises(StoreError, match="SHA-256"):
        put_own_teacher(database, replace(own, id="0" * 64), "task")


def test_weights_that_are_gone_are_told_with_the_remedy(
    database: RunDatabase, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    own = Teacher(sha256(pack_tensors(state)), SPACE.largest, state, 61.5)
    put_own_teacher(database, own, "task")
    trained = replace(make_run(0), teacher=None, student=SPACE.largest)
    database.add(replace(make_record(trained), weights=own.id))
    runs = [replace(make_run(seed), teacher=teacher) for seed in (1, 2) for teacher in (own.id, trained.id, "f" * 32)]
    check_teachers(database, [trained, *runs])  # the last one is still to be trained
    (tmp_path / "store" / "blobs" / own.id).unlink()
    check_teachers(database, [trained])
    for teacher in (own.id, trained.id):
        told = f"got {teacher} without blobs/{own.id}; copy that object"
        with pytest.raises(StoreError, match=told):
            check_teachers(database, [run for run in runs if run.teacher == teacher])
        with pytest.raises(StoreError, match=told):
            load_teacher(database, teacher, "task")


def test_a_teacher_that_is_nowhere_is_told_with_the_remedy(database: RunDatabase) -> None:
    with pytest.raises(ObjectNotFoundError, match="run `teachers`"):
        load_teacher(database, "0" * 32, "task")


def test_a_diverged_teacher_cannot_teach(database: RunDatabase) -> None:
    run = replace(make_run(0), teacher=None)
    record = make_record(run)
    diverged = replace(record.result, status=Status.DIVERGED, best_accuracy_pct=None)
    database.add(replace(record, result=diverged, weights=None))
    with pytest.raises(StoreError, match="diverged"):
        load_teacher(database, run.id, "task")
