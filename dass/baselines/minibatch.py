"""The one minibatch of a task on which the zero-cost proxies look at students."""

from dataclasses import dataclass, field, replace

import torch

from dass.data.batches import BatchSource, plain_batch
from dass.errors import ConfigError, DataError
from dass.kd.loss import distillation_loss
from dass.kd.teacher import Teacher
from dass.records import Recipe

NUM_IMAGES = 64
HARD_LABELS = Recipe(loss="ce")  # plain cross-entropy


@dataclass(frozen=True, eq=False)
class Minibatch:
    """Images float32 (B, 3, R, R), labels int64 (B,), and the loss that they are looked at with.

    recipe: its loss, temperature, alpha and label smoothing count, nothing else. teacher_logits: (B, C), for the
    losses of distillation.
    """

    images: torch.Tensor
    labels: torch.Tensor
    recipe: Recipe = HARD_LABELS
    teacher_logits: torch.Tensor | None = field(default=None, repr=False)

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        """The scalar loss of logits (B, C), in float32."""
        return distillation_loss(logits, self.teacher_logits, self.labels, self.recipe)

    def distilled(self, teacher: Teacher, num_classes: int, recipe: Recipe) -> "Minibatch":
        """The same images under the recipe's distillation loss; the teacher is frozen and in eval mode, as in training.

        Raises:
            ConfigError: the recipe's loss asks no teacher.
            SpaceError: the teacher's weights do not fit its architecture or the number of classes.
        """
        if recipe.loss == "ce":
            raise ConfigError("a loss of distillation must be kd or kd_paper, got 'ce'; set recipe.loss")
        with torch.no_grad():
            logits = teacher.network(num_classes, self.images.device)(self.images)
        return replace(self, recipe=recipe, teacher_logits=logits)

    def to(self, device: torch.device) -> "Minibatch":
        """The same on this device."""
        logits = None if self.teacher_logits is None else self.teacher_logits.to(device)
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), teacher_logits=logits)


def draw_minibatch(data: BatchSource, num_images: int = NUM_IMAGES, seed: int = 0) -> Minibatch:
    """`num_images` different images of the train part without augmentation, or all where it has fewer.

    They follow from (task, num_images, seed) alone.

    Raises:
        DataError: the train part has fewer than 2 images: batch statistics and correlations need several.
    """
    if data.num_images("train") < 2:
        raise DataError(
            f"a minibatch needs a train part of at least 2 images, got {data.num_images('train')} in task "
            f"{data.task.name}; use a task with more images"
        )
    images, labels = plain_batch(data, num_images, seed)
    return Minibatch(images.contiguous(memory_format=torch.channels_last), labels)
