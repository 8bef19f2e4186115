"""A task on which real trainings take a blink, and what a cohort showed on the way: 8 px images, space `smoke`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from dass.data.batches import Batch, BatchSource, PartName, ResidentBatches, TrainEpoch
from dass.data.pack import Pack, Part
from dass.data.splits import whole_task
from dass.kd.cohort import Cohort, Ended, Position, Progress
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.records import Recipe, Result, Run, Student, Task
from dass.spaces import get_space
from dass.tensors import pack_tensors, sha256, unpack_tensors

SPACE = get_space("smoke")
NUM_CLASSES = 3
RECIPE = Recipe(epochs=3, batch_size=8, eval_every=1, crop_padding=1)
TEACHER_RECIPE = Recipe(
    loss="ce", label_smoothing=0.1, init="scratch", epochs=3, batch_size=8, lr=0.02, eval_every=1, crop_padding=1
)
NUM_TRAIN, STEPS = 27, 3  # 3 batches of 8; the epoch's last 3 images are left out


def make_data(num_valid: int = 21, num_test: int = 9, contrast: float = 60.0, device: str = "cpu") -> ResidentBatches:
    """Three classes, each of one colour that differs from grey by `contrast`, in noise of deviation 60."""
    rng = torch.Generator().manual_seed(0)
    num = NUM_TRAIN + num_valid + num_test
    labels = torch.arange(num) % NUM_CLASSES
    colours = 127 + contrast * torch.eye(3)[labels][:, :, None, None]
    images = (colours + 60 * torch.randn(num, 3, 8, 8, generator=rng)).clamp(0, 255).to(torch.uint8)
    parts = torch.tensor([Part.TRAIN] * NUM_TRAIN + [Part.VALID] * num_valid + [Part.TEST] * num_test)
    pack = Pack(images, labels, parts.to(torch.uint8), ("red", "green", "blue"), "colours")
    return ResidentBatches.of(pack, whole_task(pack, "colours"), torch.device(device))


def make_teacher(num_classes: int = NUM_CLASSES, student: Student = SPACE.largest) -> Teacher:
    """Random weights: enough wherever the teacher only has to be the same for all."""
    state = build(student, num_classes, torch.Generator().manual_seed(1)).state_dict()
    return Teacher("t" * 64, student, state, 50.0)


def make_runs(
    data: ResidentBatches, teacher: Teacher, recipe: Recipe = RECIPE, num: int = 3, seed: int = 0
) -> list[Run]:
    students = SPACE.sample(num, torch.Generator().manual_seed(2))
    return [Run(data.task.id, teacher.id, student, recipe, seed) for student in students]


@dataclass
class Trace:
    """What a cohort showed: every yield, every run's state at every yield, and how each run ended."""

    progress: list[Progress] = field(default_factory=list)
    states: dict[str, dict[Position, bytes]] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)

    def result(self, run: Run) -> Result:
        return self.ended[run.id].result

    def outcome(self, run: Run) -> tuple[Result, bytes]:
        """The result and the kept weights, none as no tensors."""
        ended = self.ended[run.id]
        return ended.result, pack_tensors(ended.weights or {})

    def positions(self, run: Run) -> list[Position]:
        return list(self.states[run.id])


def trace(cohort: Cohort) -> Trace:
    """Train to the end."""
    seen = Trace(states={run.id: {} for run in cohort.runs})
    for progress in cohort.train():
        seen.progress.append(progress)
        seen.ended |= {ended.run.id: ended for ended in progress.ended}
        for run in cohort.runs:
            seen.states[run.id][cohort.position] = cohort.state(run.id)
    return seen


def tensors_of(state: bytes, prefix: str = "network.") -> dict[str, torch.Tensor]:
    """The tensors of a state whose names begin with `prefix`, without it."""
    tensors = unpack_tensors(state)[0]
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def without_seconds(states: dict[Position, bytes]) -> dict[Position, bytes]:
    """The states, alike for trainings that differ only in how long they took."""
    return {position: changed(state, seconds=0.0) for position, state in states.items()}


def changed(
    state: bytes, tensors: dict[str, torch.Tensor] | None = None, without: Iterable[str] = (), **header: object
) -> bytes:
    """A state with other tensors and header entries, and without some tensors."""
    old_tensors, old_header = unpack_tensors(state)
    kept = {name: tensor for name, tensor in (old_tensors | (tensors or {})).items() if name not in set(without)}
    return pack_tensors(kept, old_header | header)


@dataclass
class RecordingSource:
    """A source of batches that notes what it is asked for: training batches by their contents, parts by name."""

    source: BatchSource
    batches: list[str] = field(default_factory=list)
    parts: list[PartName] = field(default_factory=list)

    @property
    def task(self) -> Task:
        return self.source.task

    @property
    def device(self) -> torch.device:
        return self.source.device

    def num_images(self, part: PartName) -> int:
        return self.source.num_images(part)

    def train_epoch(self, recipe: Recipe, seed: int, epoch: int) -> TrainEpoch:
        return RecordingEpoch(self.source.train_epoch(recipe, seed, epoch), self.batches)

    def evaluation(self, part: PartName, batch_size: int = 256) -> Iterator[Batch]:
        self.parts.append(part)
        return self.source.evaluation(part, batch_size)


@dataclass
class RecordingEpoch:
    epoch: TrainEpoch
    batches: list[str]

    def __len__(self) -> int:
        return len(self.epoch)

    def batch(self, index: int) -> Batch:
        images, labels = self.epoch.batch(index)
        self.batches.append(sha256(pack_tensors({"images": images, "labels": labels})))
        return images, labels


@dataclass(frozen=True, eq=False)
class CountingTeacher(Teacher):
    """A teacher whose networks note the size of each batch that they see."""

    passes: list[int] = field(default_factory=list)

    def network(self, num_classes: int, device: torch.device | str = "cpu") -> torch.nn.Module:
        network = super().network(num_classes, device)
        network.register_forward_hook(lambda _, inputs, __: self.passes.append(len(inputs[0])))
        return network


DATA = make_data()
TEACHER = make_teacher()
RUNS = make_runs(DATA, TEACHER)
