"""The small residual network that a student of the family `small_resnet` names (algorithms: sections 1.1 and 1.2).

Axes: N images, C channels, H and W pixels. A 3 x 3 stem keeps the resolution, four stages of two-convolution blocks
halve it three times, and a linear classifier reads the mean over the last map. Both convolutions of a block have the
block's width, and the stem is as wide as the first block. Nothing here draws from the global random generator.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that the field uses

from dass.cost import IMAGE_CHANNELS, check_side
from dass.records import Student

STRIDES = (1, 2, 2, 2)  # of the first block of each stage
BN_EPS = 1e-5


def shortcut(maps_NCHW: torch.Tensor, num_channels: int, stride: int) -> torch.Tensor:
    """The maps with `num_channels` channels, max-pooled 2 x 2 when `stride` is 2; no parameters.

    Missing channels are zeros at the end, surplus channels are cut off the end. The pool works on each channel alone,
    so it comes between the two, where there is the least to read and to write.
    """
    missing = num_channels - maps_NCHW.shape[1]
    if missing < 0:
        maps_NCHW = maps_NCHW[:, :num_channels]
    if stride == 2:
        maps_NCHW = F.max_pool2d(maps_NCHW, 2)
    return F.pad(maps_NCHW, (0, 0, 0, 0, 0, missing)) if missing > 0 else maps_NCHW


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution without bias; its weights are whatever lies in memory (so no random number is drawn)."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False, device="meta")
    return conv.to_empty(device="cpu")


class Stem(nn.Module):
    """Convolution, batch norm, ReLU at full resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv(IMAGE_CHANNELS, width)
        self.bn = nn.BatchNorm2d(width, eps=BN_EPS)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, width, H, W)."""
        return F.relu_(self.bn(self.conv(images_NCHW)))


class Block(nn.Module):
    """Two convolutions of one width around a shortcut; the first one carries the stride."""

    def __init__(self, entering: int, width: int, stride: int) -> None:
        super().__init__()
        self.width = width
        self.stride = stride
        self.conv1 = _conv(entering, width, stride)
        self.bn1 = nn.BatchNorm2d(width, eps=BN_EPS)
        self.conv2 = _conv(width, width)
        self.bn2 = nn.BatchNorm2d(width, eps=BN_EPS)

    def forward(self, maps_NCHW: torch.Tensor) -> torch.Tensor:
        """(N, entering, H, W) -> (N, width, H / stride, W / stride)."""
        inner = F.relu_(self.bn1(self.conv1(maps_NCHW)))  # in place: batch norm needs its output no more
        inner = self.bn2(self.conv2(inner))
        return F.relu_(inner.add_(shortcut(maps_NCHW, self.width, self.stride)))


class SmallResNet(nn.Module):
    """A student as a network; its convolutions and classifier are uninitialised until `initialise` or a load."""

    def __init__(self, student: Student, num_classes: int) -> None:
        super().__init__()
        entering = student.widths[0][0]
        self.stem = Stem(entering)
        self.stages = nn.ModuleList()
        for row, stride in zip(student.widths, STRIDES, strict=True):
            inputs = (entering, *row[:-1])
            strides = (stride, *(1 for _ in row[1:]))
            self.stages.append(nn.Sequential(*map(Block, inputs, row, strides)))
            entering = row[-1]
        self.head = nn.Linear(entering, num_classes, device="meta").to_empty(device="cpu")

    def features(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """The maps of the last stage: (N, 3, H, W) -> (N, C, H / 8, W / 8), after the last ReLU.

        Raises:
            DataError: a side of the images is not a positive multiple of 8.
        """
        for side in images_NCHW.shape[-2:]:
            check_side(side)
        maps: torch.Tensor = self.stem(images_NCHW)
        for stage in self.stages:
            maps = stage(maps)
        return maps

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes); errors as in `features`."""
        logits: torch.Tensor = self.head(self.features(images_NCHW).mean(dim=(2, 3)))
        return logits


@torch.no_grad()
def initialise(network: SmallResNet, rng: torch.Generator) -> None:
    """Draw fresh weights in place: Kaiming-normal (fan out, ReLU) convolutions, torch's own rule for the classifier.

    Batch norms keep the scale 1 and shift 0 they are built with, the last one of a block included.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=rng)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=rng)
            module.bias.uniform_(-bound, bound, generator=rng)
