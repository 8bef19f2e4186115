"""A predictor's file, and photos, for tests without a store."""

from pathlib import Path

import torch
from PIL import Image

from dass.embed import draw_noise, noise_sha
from dass.networks import build
from dass.predictor import Predictor, PredictorSpec, save_predictor
from dass.seeding import generator
from dass.spaces import SearchSpace, get_space
from dass.tensors import pack_tensors

SPACE = get_space("smoke")
RESOLUTION = 16


def spec(**other: object) -> PredictorSpec:
    made_for: dict[str, object] = {
        "space": SPACE.name,
        "resolution": RESOLUTION,
        "num_channels": SPACE.num_channels,
        "arch_dim": SPACE.encoding_dim,
        "noise_sha": noise_sha(draw_noise(RESOLUTION)),
        "hidden_dim": 8,
    }
    return PredictorSpec(**{**made_for, **other})  # type: ignore[arg-type]


def write_predictor(file: Path, *, is_selected: bool = True, **other: object) -> Path:
    """A predictor without any training, which ranks all the same."""
    model = Predictor(spec(**other), seed=1)
    rates = {name: torch.full_like(weight, 0.001) for name, weight in model.named_parameters()}
    file.write_bytes(save_predictor(model, rates, is_selected=is_selected))
    return file


def write_teacher(file: Path, num_classes: int, space: SearchSpace = SPACE) -> Path:
    file.write_bytes(pack_tensors(build(space.largest, num_classes, generator("teacher", 0)).state_dict()))
    return file


def write_photos(root: Path, classes: tuple[str, ...] = ("cat", "dog"), num: int = 12) -> Path:
    """Images that differ from class to class in their colour, and within one in their noise."""
    rng = torch.Generator().manual_seed(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(num):
            noise = torch.randint(0, 90, (20, 24, 3), generator=rng)
            noise[..., label % 3] += 150
            Image.fromarray(noise.to(torch.uint8).numpy()).save(root / name / f"{index}.png")
    return root
