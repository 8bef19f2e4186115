"""A predictor small enough for tests, and the paper's, which it differs from in size alone."""

import dataclasses
from typing import Any

import torch

from dass.predictor import MetaPredictor, Predictor, PredictorSpec

PAPER = PredictorSpec(space="released", resolution=64, num_channels=256, arch_dim=181, noise_sha="n0")
SMALL = dataclasses.replace(PAPER, space="smoke", num_channels=6, arch_dim=5)


def meta_predictor(rate: float = 0.01, **changes: Any) -> MetaPredictor:
    """Drawn weights of SMALL with `changes`, and one inner rate for all of them."""
    model = Predictor(dataclasses.replace(SMALL, **changes), seed=1)
    return MetaPredictor(model, {name: torch.full_like(value, rate) for name, value in model.named_parameters()})
