"""From records to what the predictor sees: encodings, maps and targets of one task, and the same as a file."""

import math
from collections.abc import Sequence

import torch

from dass.embed import Embedder
from dass.errors import DataError, StoreError
from dass.explained import TeacherView
from dass.kd.teacher import Teacher
from dass.meta.episodes import ImageFeatures, MetaTask
from dass.records import Record, Status
from dass.spaces.space import SearchSpace
from dass.tensors import pack_tensors, unpack_tensors

FILE_VERSION = 1
_TENSORS = ("arch", "maps", "targets_pct", "teacher_arch", "teacher_map")


def featurise(
    name: str,
    space: SearchSpace,
    teacher: Teacher,
    records: Sequence[Record],
    embedder: Embedder,
    images: ImageFeatures | None = None,
    view: TeacherView | None = None,
) -> MetaTask:
    """The meta-learning view of a task's records; diverged runs have no accuracy to learn from and are left out.

    images, view: of the task's train part, for methods that look at images.

    Raises:
        DataError: fewer than two students finished.
    """
    usable = [record for record in records if record.result.status is Status.FINISHED]
    accuracies = [record.result.best_accuracy_pct for record in usable]
    if len(usable) < 2:
        raise DataError(
            f"task {name} needs at least 2 finished students, got {len(usable)} of {len(records)} records; run `collect` to "
            "its end, or lower student.lr if runs diverge"
        )
    students = [record.run.student for record in usable]
    return MetaTask(
        name=name,
        arch=space.encode_many(students),
        maps=embedder.maps(students),
        targets_pct=torch.tensor(accuracies, dtype=torch.float32),
        teacher_arch=space.encode(teacher.student),
        teacher_map=embedder.maps([teacher.student])[0],
        teacher_accuracy_pct=teacher.accuracy_pct,
        images=images,
        explained=None if view is None else view.score(students),
    )


def pack_task(task: MetaTask) -> bytes:
    """The task as a safetensors file; `unpack_task` reads it."""
    tensors = {name: getattr(task, name) for name in _TENSORS}
    header = {"version": FILE_VERSION, "name": task.name, "teacher_accuracy_pct": task.teacher_accuracy_pct}
    if task.images is not None:
        tensors["images"] = task.images.values
        header["encoder"] = task.images.encoder
    if task.explained is not None:
        tensors["explained"] = task.explained
    return pack_tensors(tensors, {"meta_task": header})


def unpack_task(data: bytes) -> MetaTask:
    """The task of a file that `pack_task` made, on the CPU.

    Raises:
        StoreError: the bytes are no such file, or what they hold does not fit together.
    """
    tensors, header = unpack_tensors(data)
    try:
        facts = header["meta_task"]
        if facts["version"] != FILE_VERSION or not math.isfinite(facts["teacher_accuracy_pct"]):
            raise ValueError(f"version {facts['version']} and teacher accuracy {facts['teacher_accuracy_pct']}")
        images = ImageFeatures(tensors["images"], str(facts["encoder"])) if "encoder" in facts else None
        return MetaTask(
            name=str(facts["name"]),
            teacher_accuracy_pct=float(facts["teacher_accuracy_pct"]),
            images=images,
            explained=tensors.get("explained"),
            **{name: tensors[name] for name in _TENSORS},
        )
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        raise StoreError(
            f"expected the features of a task, got a file that does not fit together ({error}); delete it, and it is "
            "computed anew from the records"
        ) from error
