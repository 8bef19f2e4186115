"""What the benchmarks compare with: the way it is usually done, written as one would write it with plain PyTorch.

*published*: as in the released code of the method: one student at a time, built, remapped and run alone, with a
DataLoader of PIL transforms in one worker, the teacher asked for every student and batch. *strong*: the best that plain
PyTorch gives one student at a time: images resident on the device, augmented as a batch, channels-last, a fused
optimiser. Both evaluate when we do: before the first step and after the last.
"""

import io
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812 - the customary name

from dass.data.augment import padding_of
from dass.data.batches import Batch, ResidentBatches
from dass.kd.loss import distillation_loss
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.networks.small_resnet import SmallResNet
from dass.precision import rounding
from dass.records import Recipe, Run, Student
from dass.remap import remap
from dass.seeding import generator


@dataclass(frozen=True)
class EncodedImages(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Encoded images with labels, decoded and transformed one at a time with PIL.

    padding: of the random crop, with a random flip before it; None for images as they are.
    """

    encoded: list[bytes]
    labels: list[int]
    resolution: int
    padding: int | None

    @classmethod
    def of(cls, batch: Batch, recipe: Recipe | None) -> "EncodedImages":
        """uint8 images with labels as JPEG; the recipe says how they are augmented, None that they are not."""
        from PIL import Image

        images, labels = batch
        encoded = []
        for image in images.permute(0, 2, 3, 1).cpu().contiguous().numpy():
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=95)
            encoded.append(file.getvalue())
        resolution = images.shape[-1]
        return cls(encoded, labels.tolist(), resolution, None if recipe is None else padding_of(recipe, resolution))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Decode, resize, flip, crop, to tensor, normalise."""
        import numpy as np
        from PIL import Image, ImageOps

        size = self.resolution
        image = Image.open(io.BytesIO(self.encoded[index])).convert("RGB").resize((size, size))
        if self.padding is not None:
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            left, top = (random.randint(0, 2 * self.padding) for _ in range(2))
            image = ImageOps.expand(image, self.padding).crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return (pixels.float() / 255 - 0.5) / 0.5, self.labels[index]


def published_distil(
    run: Run, teacher: Teacher, train: EncodedImages, valid: EncodedImages, device: torch.device
) -> float:
    """Distil one student; its accuracy on valid in percent."""
    network = _student(run, teacher, len(teacher.state["head.bias"])).to(device)
    expert = teacher.network(len(teacher.state["head.bias"]), device)
    recipe = run.recipe
    shuffled = torch.utils.data.DataLoader(
        train, recipe.batch_size, shuffle=True, drop_last=True, num_workers=1, pin_memory=device.type == "cuda"
    )
    whole = torch.utils.data.DataLoader(valid, 256, num_workers=1)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * len(shuffled))
    _accuracy_pct(network, whole, device)
    for _ in range(recipe.epochs):
        for images, labels in shuffled:
            _step(network, expert, images.to(device), labels.to(device), recipe, optimizer)
            schedule.step()
    return _accuracy_pct(network, whole, device)


def strong_distil(run: Run, teacher: Teacher, data: ResidentBatches) -> float:
    """Distil one student on resident images; its accuracy on valid in percent."""
    device, num_classes = data.device, data.task.num_classes
    network = _student(run, teacher, num_classes).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expert = teacher.network(num_classes, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = run.recipe
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, recipe.epochs * len(data.train_epoch(recipe, run.seed, 0))
    )
    _accuracy_pct(network, _last(data.evaluation("valid")), device)
    for epoch in range(recipe.epochs):
        batches = data.train_epoch(recipe, run.seed, epoch)
        for images, labels in _last(batches.batch(index) for index in range(len(batches))):
            _step(network, expert, images, labels, recipe, optimizer)
            schedule.step()
    return _accuracy_pct(network, _last(data.evaluation("valid")), device)


def _student(run: Run, teacher: Teacher, num_classes: int) -> torch.nn.Module:
    network = build(run.student, num_classes)
    network.load_state_dict(remap(teacher.state, teacher.student, run.student, run.recipe.init))
    return network


def _last(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, channels-last."""
    return ((images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches)


def _step(
    network: torch.nn.Module,
    expert: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
) -> None:
    with rounding(recipe.precision, images.device):
        with torch.no_grad():
            logits = expert(images)
        optimizer.zero_grad()
        distillation_loss(network(images), logits, labels, recipe).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _accuracy_pct(network: torch.nn.Module, batches: Iterable[Batch], device: torch.device) -> float:
    """Top-1 accuracy; the loss is measured too, as we do. The network is left in training mode."""
    network.eval()
    correct = num = 0
    loss = torch.zeros((), device=device)
    with torch.inference_mode():
        for images, labels in batches:
            logits, labels = network(images.to(device)), labels.to(device)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += int((logits.argmax(dim=1) == labels).sum())
            num += len(labels)
    network.train()
    return 100 * correct / num


def published_map(
    state: Mapping[str, torch.Tensor], teacher: Student, student: Student, num_classes: int, noise: torch.Tensor
) -> torch.Tensor:
    """The map of one student that is built with fresh weights, as every network is, remapped, and run."""
    network = build(student, num_classes, generator("reference"))
    network.load_state_dict(remap(state, teacher, student))
    with torch.no_grad():
        return _features(network.to(noise.device).eval(), noise)


def strong_map(
    state: Mapping[str, torch.Tensor], teacher: Student, student: Student, num_classes: int, noise: torch.Tensor
) -> torch.Tensor:
    """The same without drawing weights that are overwritten at once, channels-last, in inference mode."""
    with torch.inference_mode():
        network = build(student, num_classes)
        network.load_state_dict(remap(state, teacher, student))
        network = network.to(noise.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _features(network.eval(), noise.contiguous(memory_format=torch.channels_last))


def _features(network: torch.nn.Module, noise: torch.Tensor) -> torch.Tensor:
    assert isinstance(network, SmallResNet)
    return network.features(noise)
