from dataclasses import replace

import pytest
import torch

from dass.embed import Embedder, draw_noise
from dass.errors import DataError, StoreError
from dass.explained import TeacherView
from dass.kd.teacher import Teacher
from dass.meta.episodes import ImageFeatures, MetaTask
from dass.meta.features import featurise, pack_task, unpack_task
from dass.networks import build
from dass.records import Provenance, Recipe, Record, Result, Run, Status, Student
from dass.remap import remap
from dass.spaces import get_space
from dass.tensors import pack_tensors, unpack_tensors

SPACE = get_space("smoke")
NUM_CLASSES = 3
NOISE = draw_noise(16)
PROVENANCE = Provenance("2025-01-01T00:00:00+00:00", 1.0, 1, "lane-0", "cpu", 1, "contiguous", "0", {})


def make_teacher() -> Teacher:
    rng = torch.Generator().manual_seed(0)
    return Teacher("t", SPACE.largest, build(SPACE.largest, NUM_CLASSES, rng).state_dict(), 87.5)


TEACHER = make_teacher()
EMBEDDER = Embedder(TEACHER.state, TEACHER.student, NOISE)


def make_record(student: Student, accuracy_pct: float | None, status: Status = Status.FINISHED) -> Record:
    result = Result(status, (), 10.0, accuracy_pct, accuracy_pct and accuracy_pct - 1, 1.0)
    return Record(Run("task", TEACHER.id, student, Recipe()), result, 1, 1, NUM_CLASSES, 16, PROVENANCE)


def make_records(num: int) -> list[Record]:
    students = SPACE.sample(num, torch.Generator().manual_seed(1))
    return [make_record(student, 50.0 + index) for index, student in enumerate(students)]


def test_rows_follow_the_records() -> None:
    records = make_records(5)
    task = featurise("flowers", SPACE, TEACHER, records, EMBEDDER)
    assert (task.name, task.num_students, task.teacher_accuracy_pct) == ("flowers", 5, 87.5)
    assert task.targets_pct.tolist() == [50.0, 51.0, 52.0, 53.0, 54.0]  # the best accuracies, not the final ones
    assert [SPACE.decode(row) for row in task.arch] == [record.run.student for record in records]
    assert SPACE.decode(task.teacher_arch) == TEACHER.student


def test_maps_are_those_of_the_remapped_students_and_of_the_teacher() -> None:
    records = make_records(4)
    task = featurise("flowers", SPACE, TEACHER, records, EMBEDDER)
    students = [record.run.student for record in records]
    for student, found in zip([*students, TEACHER.student], [*task.maps, task.teacher_map], strict=True):
        network = build(student, NUM_CLASSES)
        network.load_state_dict(remap(TEACHER.state, TEACHER.student, student))
        with torch.inference_mode():
            torch.testing.assert_close(found, network.eval().features(NOISE)[0], rtol=1e-4, atol=1e-4)


def test_diverged_runs_are_left_out_even_when_they_had_an_accuracy() -> None:
    records = make_records(4)
    diverged = [
        make_record(records[0].run.student, None, Status.DIVERGED),
        make_record(SPACE.largest, 90.0, Status.DIVERGED),
    ]
    mixed = featurise("flowers", SPACE, TEACHER, [diverged[0], *records, diverged[1]], EMBEDDER)
    plain = featurise("flowers", SPACE, TEACHER, records, EMBEDDER)
    assert torch.equal(mixed.targets_pct, plain.targets_pct)
    assert torch.equal(mixed.arch, plain.arch)


def test_one_finished_student_is_not_a_task() -> None:
    first, second = make_records(2)
    lost = replace(second, result=replace(second.result, status=Status.DIVERGED))
    with pytest.raises(DataError, match="task flowers needs at least 2 finished students, got 1 of 2 records"):
        featurise("flowers", SPACE, TEACHER, [first, lost], EMBEDDER)
    with pytest.raises(DataError, match="got 0 of 0 records"):
        featurise("flowers", SPACE, TEACHER, [], EMBEDDER)


def equal(left: MetaTask, right: MetaTask) -> bool:
    names = ("arch", "maps", "targets_pct", "teacher_arch", "teacher_map")
    facts = all((left.name == right.name, left.teacher_accuracy_pct == right.teacher_accuracy_pct))
    return facts and all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


def test_a_file_gives_the_task_back() -> None:
    task = featurise("flowers", SPACE, TEACHER, make_records(5), EMBEDDER)
    again = unpack_task(pack_task(task))
    assert equal(again, task)
    assert again.images is None
    images = ImageFeatures(torch.rand(3, 4, 5), "some network")
    again = unpack_task(pack_task(replace(task, images=images)))
    assert equal(again, task)
    assert again.images is not None
    assert again.images.encoder == "some network"
    assert torch.equal(again.images.values, images.values)


def test_what_students_explain_follows_the_records_and_is_kept_in_the_file() -> None:
    records = make_records(5)
    view = TeacherView(TEACHER, torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(2)))
    task = featurise("flowers", SPACE, TEACHER, records, EMBEDDER, view=view)
    assert task.explained is not None
    assert torch.equal(task.explained, view.score([record.run.student for record in records]))
    again = unpack_task(pack_task(task))
    assert again.explained is not None
    assert torch.equal(again.explained, task.explained)
    chosen = task.students(torch.tensor([3, 1]))
    assert chosen.explained is not None
    assert torch.equal(chosen.explained, task.explained[[3, 1]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maps", None),
        ("maps", torch.full((5, 64, 2, 2), torch.nan)),
        ("targets_pct", torch.full((5,), 101.0)),
        ("teacher_arch", torch.zeros(3)),
        ("version", 2),
        ("teacher_accuracy_pct", "87.5"),
        ("teacher_accuracy_pct", 10**400),
        ("encoder", "one without images"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(name: str, value: torch.Tensor | float | str | None) -> None:
    tensors, header = unpack_tensors(pack_task(featurise("flowers", SPACE, TEACHER, make_records(5), EMBEDDER)))
    if isinstance(value, torch.Tensor):
        tensors[name] = value
    elif value is None:
        del tensors[name]
    else:
        header["meta_task"][name] = value
    with pytest.raises(StoreError, match="expected the features of a task"):
        unpack_task(pack_tensors(tensors, header))
    with pytest.raises(StoreError):
        unpack_task(b"not a file")
