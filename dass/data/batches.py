"""The contract between data and training, and its implementation for tasks that fit on the device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from dass.data.augment import EpochPlan, augment, draw_epoch, normalise, padding_of
from dass.data.pack import Pack
from dass.errors import DataError
from dass.records import Recipe, Task
from dass.seeding import generator

PartName = Literal["train", "valid", "test"]
Batch = tuple[torch.Tensor, torch.Tensor]
"""Images float32 (B, 3, R, R) in -1..1 and labels int64 (B,) in 0..C-1, both on the source's device."""


class TrainEpoch(Protocol):
    """The augmented batches of one epoch; every batch can be asked for at any time and any number of times."""

    def __len__(self) -> int:
        """The number of batches: all full, what remains at the end of the epoch is left out."""
        ...

    def batch(self, index: int) -> Batch:
        """Batch `index`, counted from 0; IndexError when there is none."""
        ...


class BatchSource(Protocol):
    """Where training takes its batches from; whoever implements this may keep or stream the images as it likes.

    The promises: a training batch is a function of (task id, recipe id, seed, epoch, index) alone, whatever was asked
    for before and on whatever device, so that a run can be resumed in the middle of an epoch and does not depend on its
    company. Evaluation gives every image of a part once, in the task's order and without augmentation, and leaves none
    out. Labels are the task's own, 0..C-1. A caller may keep or overwrite what it was given.
    """

    @property
    def task(self) -> Task:
        """The task whose images these are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        ...

    def num_images(self, part: PartName) -> int:
        """The number of images of a part; 0 for a task without a test part."""
        ...

    def train_epoch(self, recipe: Recipe, seed: int, epoch: int) -> TrainEpoch:
        """The batches of epoch `epoch`, counted from 0.

        A batch has `recipe.batch_size` images, or all of the part where it has fewer.
        """
        ...

    def evaluation(self, part: PartName, batch_size: int = 256) -> Iterator[Batch]:
        """The whole part in batches of at most `batch_size`."""
        ...


@dataclass(frozen=True, eq=False)
class ResidentEpoch:
    """The `TrainEpoch` of images that lie on the device as uint8."""

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    plan: EpochPlan = field(repr=False)
    padding: int
    batch_size: int

    def __len__(self) -> int:
        return len(self.plan) // self.batch_size

    def batch(self, index: int) -> Batch:
        """See `TrainEpoch`."""
        if not 0 <= index < len(self):
            raise IndexError(f"the epoch has batches 0..{len(self) - 1}, got {index}")
        plan = self.plan.span(index * self.batch_size, (index + 1) * self.batch_size)
        return augment(self.images[plan.order], plan, self.padding), self.labels[plan.order]


@dataclass(frozen=True, eq=False)
class ResidentBatches:
    """The `BatchSource` of a task whose images all lie on the device, as uint8: 12 KB an image at 64 px."""

    task: Task
    device: torch.device
    parts: Mapping[PartName, Batch] = field(repr=False)

    @classmethod
    def of(cls, pack: Pack, task: Task, device: torch.device | str = "cpu") -> "ResidentBatches":
        """The task's images, taken from its pack to `device`.

        Raises:
            DataError: the task was cut from another pack, or names images or classes that the pack does not have.
        """
        if pack.id != task.source:
            raise DataError(
                f"task {task.name} needs the pack that it was cut from, {task.source}, got {pack.id} ({pack.name}); "
                "load the task's own pack"
            )
        _check_inside("classes", task, task.source_labels, len(pack.class_names))
        if len(set(task.source_labels)) != task.num_classes or len(task.source_labels) != task.num_classes:
            raise DataError(
                f"task {task.name} must have one label of its pack for each of {task.num_classes} classes, got "
                f"{list(task.source_labels)}; delete the task and run `data` again"
            )
        number = torch.full((len(pack.class_names),), -1)
        number[list(task.source_labels)] = torch.arange(task.num_classes)
        indices: dict[PartName, tuple[int, ...]] = {"train": task.train, "valid": task.valid, "test": task.test}
        parts: dict[PartName, Batch] = {}
        for part, chosen in indices.items():
            _check_inside(f"{part} images", task, chosen, len(pack.images))
            rows = torch.tensor(chosen, dtype=torch.int64)
            labels = number[pack.labels[rows]]
            if num_others := int((labels < 0).sum()):
                raise DataError(
                    f"task {task.name} must have {part} images of its own classes alone, got {num_others} of others; delete "
                    "the task and run `data` again"
                )
            parts[part] = (pack.images[rows].to(device), labels.to(device))
        return cls(task, torch.device(device), parts)

    def to(self, device: torch.device) -> "ResidentBatches":
        """The same images on this device."""
        parts = {part: (images.to(device), labels.to(device)) for part, (images, labels) in self.parts.items()}
        return ResidentBatches(self.task, device, parts)

    def num_images(self, part: PartName) -> int:
        """See `BatchSource`."""
        return len(self.parts[part][1])

    def train_epoch(self, recipe: Recipe, seed: int, epoch: int) -> ResidentEpoch:
        """See `BatchSource`; ConfigError when the recipe's crop does not fit the images."""
        images, labels = self.parts["train"]
        rng = generator("data", self.task.id, recipe.id, seed, epoch)
        plan = draw_epoch(len(labels), recipe, self.task.resolution, rng).to(self.device)
        padding = padding_of(recipe, self.task.resolution)
        return ResidentEpoch(images, labels, plan, padding, min(recipe.batch_size, len(labels)))

    def evaluation(self, part: PartName, batch_size: int = 256) -> Iterator[Batch]:
        """See `BatchSource`."""
        images, labels = self.parts[part]
        for start in range(0, len(labels), batch_size):
            end = start + batch_size
            yield normalise(images[start:end]), labels[start:end].clone()


def plain_batch(data: BatchSource, num_images: int, seed: int) -> Batch:
    """Different images of the train part without augmentation, or all where it has fewer, and their labels.

    They follow from (task, num_images, seed) alone.
    """
    plain = Recipe(batch_size=num_images, flip=0.0, vertical_flip=0.0, crop_padding=0)
    return data.train_epoch(plain, seed, 0).batch(0)


def _check_inside(what: str, task: Task, indices: Sequence[int], num: int) -> None:
    """Raise DataError unless all indices are those of a pack with `num` of the kind: a task may come from a store."""
    if indices and not 0 <= min(indices) <= max(indices) < num:
        raise DataError(
            f"task {task.name} must take its {what} from 0..{num - 1} of its pack, got {min(indices)}..{max(indices)}; "
            "delete the task and run `data` again"
        )
