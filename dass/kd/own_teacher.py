"""A teacher that the user brings: read from a file, and measured on the task."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from dass.data.batches import BatchSource
from dass.errors import ConfigError, StoreError
from dass.kd.cohort import evaluate
from dass.kd.teacher import Teacher
from dass.records import Student
from dass.tensors import packed_sha256, unpack_tensors


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, a teacher's state dict.

    Raises:
        ConfigError: the file cannot be read, or is none.
    """
    try:
        return unpack_tensors(file.read_bytes())[0]
    except OSError as error:
        raise ConfigError(
            f"a teacher must be a readable safetensors file, got {file} ({error.strerror}); correct the path"
        ) from error
    except StoreError as error:
        raise ConfigError(
            f"a teacher must be a safetensors file, got {file} ({error.__cause__}); write the teacher's state dict with "
            "safetensors.torch.save_file"
        ) from error


def own_teacher(state: Mapping[str, torch.Tensor], student: Student, data: BatchSource) -> Teacher:
    """The teacher with these weights of the architecture `student`, measured on the valid part of the task of `data`.

    It has a copy of the weights on the CPU, in float32 where they are not: the networks compute in it. Its id is the
    SHA-256 of that copy.

    Raises:
        SpaceError: the weights do not fit the architecture or the task's classes, or are not finite.
    """
    weights = {
        name: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in state.items()
    }
    unmeasured = Teacher(packed_sha256(weights), student, weights, accuracy_pct=0.0)
    network = unmeasured.network(data.task.num_classes, data.device)
    ((_, accuracy_pct),) = evaluate([network], data)
    return replace(unmeasured, accuracy_pct=accuracy_pct)
