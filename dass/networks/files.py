"""A distilled student as one file: its weights, with its architecture, resolution and classes in the header."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from dass.errors import DataError
from dass.networks import build
from dass.records import Student
from dass.tensors import pack_tensors, unpack_tensors


@dataclass(frozen=True, eq=False)
class LoadedStudent:
    """A network in eval mode and what it was trained for; `classes` are in the order of its logits.

    Images go in as float32 (N, 3, resolution, resolution), normalised by `dass.data.augment.normalise`.
    """

    network: torch.nn.Module
    student: Student
    resolution: int
    classes: tuple[str, ...]


def student_bytes(
    student: Student, resolution: int, classes: Sequence[str], state: Mapping[str, torch.Tensor]
) -> bytes:
    """The file's content; `load_student` reads it."""
    return pack_tensors(state, {"student": asdict(student), "resolution": resolution, "classes": list(classes)})


def load_student(data: bytes) -> LoadedStudent:
    """The student that `student_bytes` wrote.

    Raises:
        StoreError: the bytes are damaged.
        DataError: they are no student's file, or do not fit together.
    """
    state, header = unpack_tensors(data)
    try:
        student = Student(tuple(map(tuple, header["student"]["widths"])), header["student"]["family"])
        classes = tuple(header["classes"])
        network = build(student, len(classes))
        network.load_state_dict(state)
        return LoadedStudent(network.eval(), student, int(header["resolution"]), classes)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"a student's file must be one that `distil --output` wrote, got another ({error})") from error
