"""Random crops and flips of a whole batch at once, on the device that the images lie on.

What is drawn is apart from what is done: a plan holds the random numbers of one epoch, drawn at once on the CPU, so
that every device does the same and an epoch can be taken up in its middle.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.errors import ConfigError
from dass.records import Recipe


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The random numbers of N consecutive positions of an epoch.

    order: int64 (N,), the image at each position. dy, dx: int64 (N,), where the crop begins in the padded image,
    0..2 * padding. flip, vflip: bool (N,), whether left and right, top and bottom change places.
    """

    order: torch.Tensor
    dy: torch.Tensor
    dx: torch.Tensor
    flip: torch.Tensor
    vflip: torch.Tensor

    def __len__(self) -> int:
        return len(self.order)

    def span(self, start: int, stop: int) -> "EpochPlan":
        """The plan of the positions start..stop - 1."""
        return EpochPlan(*(values[start:stop] for values in vars(self).values()))

    def to(self, device: torch.device | str) -> "EpochPlan":
        """The plan on `device`."""
        return EpochPlan(*(values.to(device) for values in vars(self).values()))


def padding_of(recipe: Recipe, resolution: int) -> int:
    """The zero padding of the random crop in pixels: the recipe's, else 4 at 32 px and 8 elsewhere.

    Differs: below 16 px the default is half the side, because 8 could move an image out of its own crop.

    Raises:
        ConfigError: the recipe's padding is not less than the side.
    """
    if recipe.crop_padding is None:
        return 4 if resolution == 32 else min(8, resolution // 2)
    if recipe.crop_padding >= resolution:
        raise ConfigError(
            f"recipe.crop_padding must be less than the resolution of {resolution} px, else a crop may show nothing "
            f"of the image, got {recipe.crop_padding}; set recipe.crop_padding"
        )
    return recipe.crop_padding


def draw_epoch(num_images: int, recipe: Recipe, resolution: int, rng: torch.Generator) -> EpochPlan:
    """The plan of one epoch over all images, each once, in random order.

    rng: a CPU generator. Always draws the same amount in the same order, whatever the recipe switches off.
    """
    shifts = 2 * padding_of(recipe, resolution) + 1
    return EpochPlan(
        order=torch.randperm(num_images, generator=rng),
        dy=torch.randint(shifts, (num_images,), generator=rng),
        dx=torch.randint(shifts, (num_images,), generator=rng),
        flip=torch.rand(num_images, generator=rng) < recipe.flip,
        vflip=torch.rand(num_images, generator=rng) < recipe.vertical_flip,
    )


def augment(images_NCHW: torch.Tensor, plan: EpochPlan, padding: int) -> torch.Tensor:
    """Flip, pad with black, crop to the old size and normalise, as `plan` says for each image.

    images_NCHW: uint8 (B, 3, R, R), on the plan's device; `plan.order` is not applied. Returns float32 (B, 3, R, R).
    Differs: `vflip` turns images upside down; the reference's switch of that name flips left and right again.
    """
    size = images_NCHW.shape[-1]
    padded = F.pad(images_NCHW, (padding,) * 4)
    _, channels, _, padded_size = padded.shape
    rows = _source_index(plan.dy, plan.vflip, size, padded_size)[:, None, :, None]
    columns = _source_index(plan.dx, plan.flip, size, padded_size)[:, None, None, :]
    taken = padded.gather(2, rows.expand(-1, channels, -1, padded_size)).gather(
        3, columns.expand(-1, channels, size, -1)
    )
    return normalise(taken)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 -1..1: mean 0.5 and standard deviation 0.5 of values scaled to 0..1."""
    return images.float().div_(127.5).sub_(1.0)


def _source_index(start: torch.Tensor, is_flipped: torch.Tensor, size: int, padded_size: int) -> torch.Tensor:
    """Which rows (or columns) of the padded image the crop takes, int64 (B, size).

    The padding is symmetric, so cropping the flipped image is reading the padded one from its other end.
    """
    index = start[:, None] + torch.arange(size, device=start.device)
    return torch.where(is_flipped[:, None], padded_size - 1 - index, index)
