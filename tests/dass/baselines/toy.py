"""Synthetic tasks whose students are ranked by size, upwards or downwards as the task's slope says.

The slope shows in the teacher's accuracy, in the accuracies of students and in the images, so that a method may read it
from any of them; a method that ranks alike on every task can be right on half of them at most. A student's size shows in
its architecture and in its map.
"""

from typing import Any

import torch

from dass.baselines.meta_d2a import MetaD2AConfig
from dass.baselines.tans import TansConfig
from dass.meta.episodes import ImageFeatures, MetaTask, split_support
from dass.meta.method import MetaMethod
from dass.meta.train import MetaConfig
from dass.metrics import spearman

NUM_CHANNELS, ARCH_DIM, SIDE, NUM_FEATURES = 4, 6, 2, 8
ENCODER = "toy:0"
PLACE: dict[str, Any] = {
    "space": "toy",
    "resolution": 16,
    "num_channels": NUM_CHANNELS,
    "arch_dim": ARCH_DIM,
    "noise_sha": "n0",
}
IMAGES: dict[str, Any] = {"encoder": ENCODER, "num_features": NUM_FEATURES}

ADAPTING = MetaConfig(episodes=100, queries=20, eval_every=20, lr=5e-3, unit="task_free")
META_D2A = MetaD2AConfig(episodes=100, queries=20, images_per_class=5, lr=3e-3, eval_every=20)
TANS = TansConfig(episodes=200, eval_every=20)


def task(name: str, slope: float, seed: int, *, level: float = 60, num: int = 40) -> MetaTask:
    rng = torch.Generator().manual_seed(seed)
    index = torch.randint(ARCH_DIM, (num,), generator=rng)
    size = torch.linspace(0, 1, ARCH_DIM)[index]
    teacher_map = torch.rand(NUM_CHANNELS, SIDE, SIDE, generator=rng)
    images = 0.3 * torch.randn(3, 7, NUM_FEATURES, generator=rng) + slope * torch.linspace(-1, 1, NUM_FEATURES)
    noise = torch.randn(num, generator=rng)
    return MetaTask(
        name=name,
        arch=torch.eye(ARCH_DIM)[index],
        maps=(0.2 + size)[:, None, None, None] * teacher_map,
        targets_pct=(level + 20 * slope * (size - 0.5) + noise).clamp(0, 100),
        teacher_arch=torch.eye(ARCH_DIM)[-1],
        teacher_map=teacher_map,
        teacher_accuracy_pct=level + 10 * slope,
        images=ImageFeatures(images, ENCODER),
        explained=(0.2 + size) / 1.2,
    )


TRAIN = [task(f"train{i}", slope, seed=i) for i, slope in enumerate(torch.linspace(-1, 1, 8).tolist())]
VALID = [task("valid0", -0.6, seed=20), task("valid1", 0.7, seed=21)]
FALLING, RISING = task("falling", -0.8, seed=30), task("rising", 0.8, seed=31)


def scores(method: MetaMethod, of: MetaTask) -> tuple[torch.Tensor, torch.Tensor]:
    """What it predicts for the students that it is not shown, and their accuracies."""
    shown, rest = split_support(of.num_students, method.num_support, "test")
    students = of.students(rest)
    return method.adapt(of.support(shown)).score(students.maps, students.arch), students.targets_pct


def correlation(method: MetaMethod, of: MetaTask) -> float:
    """Spearman on the students that it is not shown."""
    return spearman(*scores(method, of))
