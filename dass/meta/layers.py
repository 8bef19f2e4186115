"""Linear layers for networks that are functions of their parameters, as learning to adapt wants them."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import nn

from dass.meta.adapt import Params


def linear(num_in: int, num_out: int) -> nn.Linear:
    """A layer whose weights are whatever lies in memory (so no random number is drawn): `initialise` or load them."""
    return nn.Linear(num_in, num_out, device="meta").to_empty(device="cpu")


def apply_linear(params: Params, layer: str, values: torch.Tensor) -> torch.Tensor:
    """The linear layer of this name on values (..., num_in)."""
    return F.linear(values, params[f"{layer}.weight"], params[f"{layer}.bias"])


def initialise(model: nn.Module, rng: torch.Generator) -> None:
    """Draw what PyTorch's layers draw by default: weight and bias uniform within 1 / sqrt(fan-in)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=rng)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=rng)
