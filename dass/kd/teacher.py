"""The teacher: how it is trained, checked, and asked for logits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from dass.errors import SpaceError
from dass.networks import build
from dass.records import Recipe, Run, Student, Task
from dass.spaces.space import SearchSpace

TEACHER_RECIPE = Recipe(loss="ce", label_smoothing=0.1, epochs=180, lr=0.05, init="scratch")
"""The teacher of Tiny-ImageNet splits (algorithms: section 5.3); small target sets use lr=0.01."""

SHORT_TEACHER_RECIPE = replace(TEACHER_RECIPE, epochs=30, batch_size=16, lr=0.01)
"""For a teacher that is trained while somebody waits, perhaps on few images: a sixth of the epochs, the rate of small target
sets, and batches so small that there are steps enough (300 unflipped digits: 77 % on valid, 44 % in batches of 64)."""


def teacher_run(task: Task, space: SearchSpace, recipe: Recipe = TEACHER_RECIPE, seed: int = 0) -> Run:
    """The run that trains the largest network of `space` on `task`; its id is the teacher's id."""
    return Run(task.id, None, space.largest, recipe, seed)


@dataclass(frozen=True, eq=False)
class Teacher:
    """Trained weights, the architecture that they belong to, and how good they are.

    id: the run id of the run that trained it, or the SHA-256 of a user's own weights.
    accuracy_pct: top-1 on the valid part of its task.
    """

    id: str
    student: Student
    state: Mapping[str, torch.Tensor] = field(repr=False)
    accuracy_pct: float

    def check(self, num_classes: int) -> None:
        """Raise SpaceError, naming the first bad tensor, unless the weights fit the architecture and are finite."""
        expected = {name: tuple(tensor.shape) for name, tensor in build(self.student, num_classes).state_dict().items()}
        received = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        for name in sorted(expected.keys() | received.keys()):
            if expected.get(name) != received.get(name):
                raise SpaceError(
                    f"a teacher of {self.student.key} for {num_classes} classes has {name} of shape "
                    f"{expected.get(name, 'no such tensor')}, got {received.get(name, 'no such tensor')}; give weights of "
                    "this space and of the task's classes, or train the teacher with `teachers`"
                )
            if not torch.isfinite(self.state[name]).all():
                raise SpaceError(
                    f"a teacher's weights must be finite, got others in {name}; give weights of a training that did not "
                    "diverge, or train the teacher with `teachers`"
                )

    def network(self, num_classes: int, device: torch.device | str = "cpu") -> torch.nn.Module:
        """The frozen network in eval mode on `device`.

        Raises:
            SpaceError: the weights do not fit the architecture or the number of classes, or are not finite.
        """
        self.check(num_classes)
        network = build(self.student, num_classes)
        network.load_state_dict(dict(self.state))
        return network.to(device).eval().requires_grad_(requires_grad=False)
