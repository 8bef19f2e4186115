"""A distilled student as one file: its weights, with its architecture, resolution and classes in the header."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from dass.cost import count_params
from dass.errors import DataError
from dass.networks import build
from dass.records import Student
from dass.tensors import not_finite, pack_tensors, unpack_tensors


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
        classes, resolution = tuple(header["classes"]), header["resolution"]
        if type(resolution) is not int or resolution < 1 or not all(isinstance(name, str) for name in classes):
            raise TypeError("a resolution or classes of another type")
        if count_params(student, len(classes)) > sum(tensor.numel() for tensor in state.values()):
            raise ValueError("fewer weights than its architecture has")  # before a network of any size is made
        network = build(student, len(classes))
        network.load_state_dict(state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"a student's file must be one that `distil --output` wrote, got another ({error}); write it again"
        ) from error
    if name := not_finite(state):
        raise DataError(f"a student's weights must be finite, got others in {name}; write the file again")
    return LoadedStudent(network.eval(), student, resolution, classes)
