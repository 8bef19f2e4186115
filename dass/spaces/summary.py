"""What an architecture is, in a few numbers per stage, for predictors that have few records to learn from (ours)."""

from collections.abc import Sequence

import torch

NUMBERS_PER_STAGE = 3


def summarise_stages(levels: torch.Tensor, ratios: Sequence[float]) -> torch.Tensor:
    """Of each stage the logarithms of its narrowest and mean width, and its depth less 1, all as shares of the teacher's.

    What a stage lets through, its narrowest block decides, which one entry per width of every block does not say. The
    teacher's numbers are zero.

    Args:
        levels: (n, stages, slots, ratios), 1 where the block of a slot has that share of the full width, else 0.
        ratios: the shares.

    Returns:
        (n, stages, NUMBERS_PER_STAGE), of the dtype and on the device of `levels`.
    """
    shares, is_there = levels @ levels.new_tensor(ratios), levels.sum(dim=-1)
    narrowest = torch.where(is_there > 0, shares, 1.0).amin(dim=-1)
    mean = shares.sum(dim=-1) / is_there.sum(dim=-1)
    return torch.stack([narrowest.log(), mean.log(), is_there.mean(dim=-1) - 1], dim=-1)
