"""The teacher's logits of training batches, kept, so that only the first cohort of a task asks the teacher at all.

A training batch is a function of (task, recipe, seed, epoch, index) alone, whoever learns from it; so are a teacher's
logits of it, for the same device, threads and memory format. Keeping them changes no bit of a result.
"""

from collections import OrderedDict
from collections.abc import Hashable

import torch

MAX_BYTES = 256 * 2**20  # 50 epochs of 20,000 images and 40 classes are 160 MB


class TeacherLogits:
    """A bounded store of logits; an owner passes it from cohort to cohort.

    What belongs together is one `course`: the batches of all epochs that one cohort after the other goes through. When
    the room is used up, whole courses go, the one that was used longest ago first. Within a course nothing goes:
    cohorts walk through it from its beginning, so that what was used longest ago is what is needed next; its last
    batches are then not kept.

    Args:
        max_bytes: of all logits together; 0 keeps none.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._courses: OrderedDict[Hashable, dict[tuple[int, int], torch.Tensor]] = OrderedDict()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """What is held."""
        return self._num_bytes

    def get(self, course: Hashable, epoch: int, index: int) -> torch.Tensor | None:
        """The logits (B, C) of batch `index` of an epoch, to be read only; None when they are not held."""
        if course not in self._courses:
            return None
        self._courses.move_to_end(course)
        return self._courses[course].get((epoch, index))

    def put(self, course: Hashable, epoch: int, index: int, logits: torch.Tensor) -> None:
        """Keep the logits of a batch where there is room."""
        known = self._courses.setdefault(course, {})
        self._courses.move_to_end(course)
        while self._num_bytes + logits.nbytes > self._max_bytes and len(self._courses) > 1:
            _, batches = self._courses.popitem(last=False)
            self._num_bytes -= sum(each.nbytes for each in batches.values())
        if (epoch, index) not in known and self._num_bytes + logits.nbytes <= self._max_bytes:
            known[epoch, index] = logits
            self._num_bytes += logits.nbytes
