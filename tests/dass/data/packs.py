"""Small synthetic packs and tasks that the tests of the data share."""

import torch

from dass.data.pack import Pack, Part


def make_pack(
    num_classes: int = 3,
    per_class: int = 6,
    *,
    resolution: int = 8,
    seed: int = 0,
    parts: tuple[Part, ...] = (Part.TRAIN, Part.TRAIN, Part.TRAIN, Part.VALID, Part.VALID, Part.TEST),
) -> Pack:
    """Random images in the order class by class; the images of a class take the parts of `parts` in turn."""
    rng = torch.Generator().manual_seed(seed)
    num = num_classes * per_class
    images = torch.randint(0, 256, (num, 3, resolution, resolution), dtype=torch.uint8, generator=rng)
    labels = torch.arange(num) // per_class
    cycle = torch.tensor([parts[i % len(parts)] for i in range(per_class)], dtype=torch.uint8)
    names = tuple(f"class{label}" for label in range(num_classes))
    return Pack(images, labels, cycle.repeat(num_classes), names, "synthetic")


def golden_pack() -> Pack:
    """A pack that needs no random numbers, for ids that must never change."""
    images = (torch.arange(12 * 3 * 8 * 8) % 251).to(torch.uint8).reshape(12, 3, 8, 8)
    labels = torch.arange(12) % 2
    parts = torch.tensor([0] * 6 + [1] * 4 + [2] * 2, dtype=torch.uint8)
    return Pack(images, labels, parts, ("no", "yes"), "golden")
