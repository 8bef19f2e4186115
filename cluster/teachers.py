"""Teachers from the store: those that a run trained, and those that a user brought."""

from collections.abc import Iterable
from dataclasses import asdict

from cluster.database import RunDatabase
from cluster.documents import get_latest, put_latest
from cluster.objects import ObjectStore
from cluster.plan import teacher_run
from cluster.weights import get_weights, has_blob, put_weights
from dass.errors import ObjectNotFoundError, StoreError
from dass.kd.teacher import Teacher
from dass.records import Run, Student


def load_teacher(database: RunDatabase, teacher_id: str, task: str) -> Teacher:
    """The teacher that the run `teacher_id` trained, or the user's own with this SHA-256 as it was measured on `task`.

    Raises:
        ObjectNotFoundError: neither is in the store.
        StoreError: the run diverged, or its weights were not kept or are damaged.
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
    _check_kept(database.store, teacher_id, record.weights)
    return Teacher(teacher_id, record.run.student, get_weights(database.store, record.weights), accuracy)


def check_teachers(database: RunDatabase, runs: Iterable[Run]) -> None:
    """Raise StoreError unless the weights of each teacher that these runs need are there, if it has finished."""
    for teacher_id in sorted({teacher for run in runs if (teacher := teacher_run(run)) is not None}):
        record = database.get(teacher_id)
        if record is not None and record.weights is not None:
            _check_kept(database.store, teacher_id, record.weights)


def put_own_teacher(database: RunDatabase, teacher: Teacher, task: str) -> None:
    """Keep a user's own teacher of a task, whose id is the SHA-256 of its weights."""
    sha = put_weights(database.store, teacher.state)
    if sha != teacher.id:
        raise StoreError(f"an own teacher's id must be the SHA-256 of its weights {sha}, got {teacher.id}")
    value = {"student": asdict(teacher.student), "accuracy_pct": teacher.accuracy_pct}
    put_latest(database.store, _name(teacher.id, task), value)


def _check_kept(store: ObjectStore, teacher_id: str, sha: str) -> None:
    if not has_blob(store, sha):
        raise StoreError(
            f"a teacher that has finished must have its weights in the store, got run {teacher_id} without blobs/{sha}; copy "
            "that object from where it is, or use another --store, in which teachers are trained anew"
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
    return Teacher(teacher_id, known["student"], get_weights(database.store, teacher_id), known["accuracy_pct"])
