"""Teachers from the store: those that a run trained, and those that a user brought."""

from collections.abc import Iterable
from dataclasses import asdict

import torch

from cluster.database import RunDatabase
from cluster.documents import get_latest, put_latest
from cluster.objects import ObjectStore
from cluster.parallel import each
from cluster.plan import teacher_run
from cluster.weights import get_weights, has_blob, put_weights
from dass.errors import ObjectNotFoundError, StoreError
from dass.kd.teacher import Teacher
from dass.records import Run, Student


def load_teacher(database: RunDatabase, teacher_id: str, task: str) -> Teacher:
    """The teacher that the run `teacher_id` trained, or the user's own with this SHA-256 as it was measured on `task`.

    Raises:
        ObjectNotFoundError: neither is in the store.
        StoreError: the run diverged, or its weights were not kept, are gone or damaged.
    """
    record = database.get(teacher_id)
    if record is None:
        return _own_teacher(database, teacher_id, task)
    accuracy = record.result.best_accuracy_pct
    if record.weights is None or accuracy is None:
        raise StoreError(
            f"a teacher must have finished with weights, got run {teacher_id} that is {record.result.status.value} and has "
            f"{'no' if record.weights is None else 'kept'} weights; lower teacher.lr if it diverged"
        )
    return Teacher(teacher_id, record.run.student, _weights(database.store, teacher_id, record.weights), accuracy)


def check_teachers(database: RunDatabase, runs: Iterable[Run]) -> None:
    """Raise StoreError unless the weights of each teacher that these runs need are there; one yet to be trained needs none."""
    runs = list(runs)
    trained = {teacher for run in runs if (teacher := teacher_run(run)) is not None}
    sha_of = {run.teacher: run.teacher for run in runs if run.teacher is not None and run.teacher not in trained}
    if trained:
        sha_of |= {record.run.id: record.weights for record in database.scan(trained) if record.weights is not None}
    needed = sorted(sha_of.items())
    there = each(database.store, lambda item: has_blob(database.store, item[1]), needed)
    for (teacher_id, sha), is_there in zip(needed, there, strict=True):
        if not is_there:
            raise _lost(teacher_id, sha)


def put_own_teacher(database: RunDatabase, teacher: Teacher, task: str) -> None:
    """Keep a user's own teacher of a task, whose id is the SHA-256 of its weights."""
    sha = put_weights(database.store, teacher.state)
    if sha != teacher.id:
        raise StoreError(f"an own teacher's id must be the SHA-256 of its weights {sha}, got {teacher.id}")
    value = {"student": asdict(teacher.student), "accuracy_pct": teacher.accuracy_pct}
    put_latest(database.store, _name(teacher.id, task), value)


def _weights(store: ObjectStore, teacher_id: str, sha: str) -> dict[str, torch.Tensor]:
    try:
        return get_weights(store, sha)
    except ObjectNotFoundError as error:
        raise _lost(teacher_id, sha) from error


def _lost(teacher_id: str, sha: str) -> StoreError:
    return StoreError(
        f"a teacher's weights must be in the store, got {teacher_id} without blobs/{sha}; copy that object from where it is, "
        "give --teacher again if it is your own, or use another --store, in which teachers are trained anew"
    )


def _name(teacher_id: str, task: str) -> str:
    return f"teacher-{teacher_id}-{task}"


def _own_teacher(database: RunDatabase, teacher_id: str, task: str) -> Teacher:
    try:
        known = get_latest(database.store, _name(teacher_id, task), student=Student, accuracy_pct=float)
    except ObjectNotFoundError as error:
        raise ObjectNotFoundError(
            f"the teacher must be in the store, got none with the id {teacher_id}; run `teachers`, or give --teacher"
        ) from error
    return Teacher(
        teacher_id, known["student"], _weights(database.store, teacher_id, teacher_id), known["accuracy_pct"]
    )
