"""A frozen network that turns a task's images into vectors, for methods that look at images (MetaD2A, TANS).

    encoder = teacher_encoder(teacher, num_classes)                # or resnet18_encoder(file), or any frozen network
    features = image_features(encoder, *ResidentBatches.of(pack, task).parts["train"])

Every task, those that teach a method and those that it is used on, must go through one and the same network: the method
remembers the encoder's id and refuses the features of another.

Differs: MetaD2A and TANS read a ResNet-18 trained on ImageNet. Its weights are not part of this package, so by default
the features are those of one teacher, trained on images of a meta-training task; `resnet18_encoder` takes the original's
weights from a file of yours.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from dass.data.torchvision_import import import_torchvision
from dass.errors import DataError, SpaceError
from dass.kd.teacher import Teacher
from dass.meta.episodes import ImageFeatures
from dass.networks import SmallResNet
from dass.seeding import generator
from dass.tensors import open_tensors, packed_sha256

IMAGES_PER_CLASS = 20  # as MetaD2A
BATCH = 256

Channels = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A frozen network and what it wants of images.

    network: images float32 (N, 3, R, R) to vectors (N, F); used in eval mode and without gradients. name: for people.
    mean, std: of the channels of its training images, on the scale 0..1. side: images are resized to it; None: as they are.
    """

    network: nn.Module = field(repr=False)
    name: str
    mean: Channels = (0.5, 0.5, 0.5)
    std: Channels = (0.5, 0.5, 0.5)
    side: int | None = None

    @property
    def id(self) -> str:
        """Name, preparation and the hash of the weights: equal ids give equal features."""
        how = {"mean": self.mean, "std": self.std, "side": self.side}
        return f"{self.name}:{packed_sha256(self.network.state_dict(), how)[:16]}"

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """float32 (N, F) of uint8 images (N, 3, R, R), on their device; the network itself stays where and as it is."""
        network = copy.deepcopy(self.network).to(images.device).eval()
        with torch.inference_mode():
            return torch.cat([network(self._prepare(batch)) for batch in torch.split(images, BATCH)]).float()

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std))
        scaled = images.float() / 255
        if self.side is not None:
            scaled = F.interpolate(scaled, (self.side, self.side), mode="bilinear", antialias=True)
        return (scaled - mean) / std


def teacher_encoder(teacher: Teacher, num_classes: int) -> ImageEncoder:
    """What a teacher's classifier reads: the mean of its last map over places, F its channels; the default encoder.

    num_classes: of the task that it was trained on. Use one teacher for all tasks.
    """
    return ImageEncoder(_Penultimate(teacher.network(num_classes)), "teacher")


def resnet18_encoder(file: Path) -> ImageEncoder:
    """Torchvision's ResNet-18 without its classifier, F = 512, as MetaD2A and TANS use it: 224 px, ImageNet's channels.

    file: a safetensors file of its state dict; write it with safetensors.torch.save_file from weights that you trust.

    Raises:
        SpaceError: the weights are those of another network. StoreError: the file is damaged. OSError: it cannot be read.
    """
    models = import_torchvision("models")
    with torch.device("meta"):  # or its constructor would draw weights from the global random generator
        network = models.resnet18()
    try:
        network.load_state_dict(open_tensors(file)[0], assign=True)
    except RuntimeError as error:
        raise SpaceError(
            f"weights must be those of torchvision's resnet18, got {file} ({str(error).splitlines()[-1].strip()}); "
            "give its state dict"
        ) from error
    network.fc = nn.Identity()
    frozen = network.float().eval().requires_grad_(requires_grad=False)
    return ImageEncoder(frozen, "resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)


def image_features(
    encoder: ImageEncoder,
    images: torch.Tensor,
    labels: torch.Tensor,
    per_class: int = IMAGES_PER_CLASS,
    seed: int = 0,
) -> ImageFeatures:
    """Features of `per_class` images of each class, drawn by `seed`; a class with fewer gives some of them again.

    images: uint8 (N, 3, R, R). labels: int64 (N,), 0..c-1. The train part of a task, never more.

    Raises:
        DataError: a class has no image.
    """
    rng, chosen = generator("image features", seed), []
    for label in range(int(labels.max()) + 1):
        (indices,) = torch.where(labels.cpu() == label)
        if not len(indices):
            raise DataError(f"image features need an image of every class, got none of class {label}; give all classes")
        order = torch.randperm(len(indices), generator=rng)
        chosen.append(indices[order[torch.arange(per_class) % len(order)]])
    values = encoder.encode(images[torch.cat(chosen).to(images.device)])
    return ImageFeatures(values.view(len(chosen), per_class, -1), encoder.id)


class _Penultimate(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, SmallResNet):
            raise SpaceError(f"a teacher that encodes images must be a SmallResNet, got {type(network).__name__}")
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.features(images).mean(dim=(2, 3))
