"""More kernels than oneDNN keeps by itself; oneDNN's own log tells which it had to generate."""

import os
import subprocess
import sys

import pytest

SHAPES = """
import dass.embed, torch
for _ in range(2):
    for side in range(1, 19):
        for channels in range(1, 65):
            sizes = (2, channels, side, side), (16, channels, 3, 3)
            images, weight = (torch.zeros(size).to(memory_format=torch.channels_last) for size in sizes)
            torch.nn.functional.conv2d(images, weight, padding=1)
    print("again", flush=True)
"""
NUM_SHAPES = 18 * 64  # more than the 1,024 that are kept otherwise


def generated(**environment: str) -> list[int]:
    """How many convolutions had to be generated, first and again."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("ONEDNN", "DNNL"))}
    answer = subprocess.run(
        [sys.executable, "-c", SHAPES],
        env={**known, "ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [each.count("create:cache_miss,cpu,convolution") for each in answer.stdout.split("again")[:2]]


def test_kernels_are_generated_once_unless_the_environment_says_otherwise() -> None:
    first, again = generated()
    if not first:
        pytest.skip("torch's convolutions are not oneDNN's on this machine")
    assert first > 0.9 * NUM_SHAPES
    assert again == 0
    assert generated(ONEDNN_PRIMITIVE_CACHE_CAPACITY="8")[1] > 0.9 * NUM_SHAPES
