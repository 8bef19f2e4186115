"""Synthetic tasks: a student's accuracy is its teacher's level less a term in its size, which its map betrays."""

import torch

from dass.meta.episodes import MetaTask
from dass.meta.train import MetaConfig
from dass.predictor import PredictorSpec

NUM_CHANNELS, ARCH_DIM, SIDE = 6, 5, 2


def task(name: str, level: float, seed: int, num: int = 40) -> MetaTask:
    rng = torch.Generator().manual_seed(seed)
    teacher_map = torch.rand(NUM_CHANNELS, SIDE, SIDE, generator=rng)
    size = 0.1 + 0.9 * torch.rand(num, generator=rng)
    noise = 0.05 * torch.randn(num, NUM_CHANNELS, SIDE, SIDE, generator=rng)
    levels = torch.linspace(0.1, 1, ARCH_DIM)
    return MetaTask(
        name=name,
        arch=torch.nn.functional.one_hot((size[:, None] - levels).abs().argmin(1), ARCH_DIM).float(),
        maps=size[:, None, None, None] * teacher_map + noise,
        targets_pct=level + 6 * size.log(),
        teacher_arch=torch.eye(ARCH_DIM)[-1],
        teacher_map=teacher_map,
        teacher_accuracy_pct=level,
    )


def spec(config: MetaConfig) -> PredictorSpec:
    return config.spec(space="toy", resolution=16, num_channels=NUM_CHANNELS, arch_dim=ARCH_DIM, noise_sha="n0")
