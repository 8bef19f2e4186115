"""A distilled student as one file: its weights, with its architecture and its classes in the header."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from dass.errors import DataError
from dass.networks import build
from dass.records import Student
from dass.tensors import pack_tensors, unpack_tensors


def student_bytes(student: Student, classes: Sequence[str], state: Mapping[str, torch.Tensor]) -> bytes:
    """The file's content; `load_student` reads it."""
    return pack_tensors(state, {"student": asdict(student), "classes": list(classes)})


def load_student(data: bytes) -> tuple[torch.nn.Module, Student, tuple[str, ...]]:
    """The network in eval mode, its architecture, and its classes in the order of its logits.

    Images go in as float32 (N, 3, R, R) with R a multiple of 8, normalised by `dass.data.augment.normalise`.

    Raises:
        StoreError: the bytes are damaged. DataError: they are no student's file, or do not fit together.
    """
    state, header = unpack_tensors(data)
    try:
        student = Student(tuple(map(tuple, header["student"]["widths"])), header["student"]["family"])
        classes = tuple(header["classes"])
        network = build(student, len(classes))
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"a student's file must be one that `distil --output` wrote, got another ({error})") from error
    return network.eval(), student, classes
