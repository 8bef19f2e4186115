"""From records to what the predictor sees: encodings, maps and targets of one task."""

from collections.abc import Sequence

import torch

from dass.embed import Embedder
from dass.errors import DataError
from dass.kd.teacher import Teacher
from dass.meta.episodes import ImageFeatures, MetaTask
from dass.records import Record, Status
from dass.spaces.space import SearchSpace


def featurise(
    name: str,
    space: SearchSpace,
    teacher: Teacher,
    records: Sequence[Record],
    embedder: Embedder,
    images: ImageFeatures | None = None,
) -> MetaTask:
    """The meta-learning view of a task's records; diverged runs have no accuracy to learn from and are left out.

    images: of the task's train part, for methods that look at images.

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
    )
