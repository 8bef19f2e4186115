"""Students as torch modules."""

import torch

from dass.errors import ConfigError, SpaceError
from dass.networks.small_resnet import SmallResNet, initialise
from dass.records import Student

__all__ = ["SmallResNet", "build"]


def build(student: Student, num_classes: int, rng: torch.Generator | None = None) -> SmallResNet:
    """The student's network on the CPU, float32, in train mode.

    rng: draws the weights. Without it they are whatever lies in memory: load a state dict before use.

    Raises:
        SpaceError: no network is known for the student's family.
        ConfigError: `num_classes` is below 1.
    """
    if student.family != "small_resnet":
        raise SpaceError(
            f"a student's family must be small_resnet, got {student.family!r}; use a student of that family"
        )
    if num_classes < 1:
        raise ConfigError(f"num_classes must be >= 1, got {num_classes}; give the number of classes of the task")
    network = SmallResNet(student, num_classes)
    if rng is not None:
        initialise(network, rng)
    return network
