"""A user's own files: folders of small images, and weights."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from dass.networks import build
from dass.records import Student
from dass.seeding import generator
from dass.tensors import pack_tensors


def write_images(root: Path, classes: Mapping[str, int]) -> str:
    """So many images of each class, no two alike; returns the spec of the folder."""
    for label, (name, num) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(num):
            Image.new("RGB", (9, 7), (20 * index % 256, 60 * label % 256, 90)).save(root / name / f"{index}.png")
    return f"imagefolder:{root}"


def save_weights(path: Path, student: Student, num_classes: int, dtype: torch.dtype = torch.float32) -> Path:
    """Untrained weights as a safetensors file; returns its path."""
    state = build(student, num_classes, generator("weights", 0)).state_dict()
    path.write_bytes(pack_tensors({k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}))
    return path
