"""What a space says of architectures in a few numbers, against the same taken from the widths and the costs themselves."""

import math

import pytest
import torch

from dass.cost import IMAGE_CHANNELS, count_macs, count_params
from dass.records import Student
from dass.seeding import generator
from dass.spaces import PRESETS, get_space


def test_a_known_student_is_summed_up_as_by_hand() -> None:
    space = get_space("paper5_w8")
    full = space.largest.widths
    assert [row[0] for row in full] == [8, 16, 32, 64]
    student = Student(((8,), (8, 16), (16, 32, 32), full[3]))
    space.check(student)
    assert space.summarise(space.encode_many([student]))[0, :12].tolist() == pytest.approx(
        # narrowest, mean and depth of each of the four stages
        [0, 0, -4 / 5, math.log(0.5), math.log(0.75), -3 / 5, math.log(0.5), math.log(5 / 6), -2 / 5, 0, 0, 0],
        abs=1e-6,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_it_is_what_the_widths_say_and_zero_for_the_teacher(name: str) -> None:
    space = get_space(name)
    teacher = space.largest
    students = [*space.sample(40, generator("summary", 0)), teacher]
    found = space.summarise(space.encode_many(students))
    assert found.shape == (41, space.summary_dim)
    assert found.dtype == torch.float32
    expected = [
        [
            number
            for row, full in zip(student.widths, teacher.widths, strict=True)
            for number in (
                math.log(min(row) / full[0]),
                math.log(sum(row) / len(row) / full[0]),
                len(row) / len(full) - 1,
            )
        ]
        + [
            math.log(block_macs(student) / block_macs(teacher)),
            math.log(block_weights(student) / block_weights(teacher)),
        ]
        for student in students
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert not found[-1].any()


def block_macs(student: Student) -> int:
    """Without classifier and stem."""
    return count_macs(student, 64, 0) - 64 * 64 * 9 * IMAGE_CHANNELS * student.widths[0][0]


def block_weights(student: Student) -> int:
    """The same of weights, and without those of batch norm: two numbers of a channel for each convolution."""
    norms = sum(2 * 2 * width for row in student.widths for width in row) + 2 * student.widths[0][0]
    return count_params(student, 0) - norms - 9 * IMAGE_CHANNELS * student.widths[0][0]
