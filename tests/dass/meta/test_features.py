from dataclasses import replace

import pytest
import torch

from dass.embed import Embedder, draw_noise
from dass.errors import DataError
from dass.kd.teacher import Teacher
from dass.meta.features import featurise
from dass.networks import build
from dass.records import Provenance, Recipe, Record, Result, Run, Status, Student
from dass.remap import remap
from dass.spaces import get_space

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
