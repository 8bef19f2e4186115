"""What an architecture is, in a few numbers, for predictors that have few records to learn from (ours)."""

from collections.abc import Sequence

import torch

NUMBERS_PER_STAGE = 3
NUM_SIZES = 2


def summarise(levels: torch.Tensor, ratios: Sequence[float], widths: Sequence[int]) -> torch.Tensor:
    """Of each stage its narrowest and mean width and its depth, and of all blocks MACs and weights, against the teacher's.

    What a stage lets through, its narrowest block decides, which one entry per width of every block does not say. All are
    logarithms of shares of the teacher's number, but for the depth, which is a share less 1. The teacher's are zero.

    Args:
        levels: (n, stages, slots, ratios), 1 where the block of a slot has that share of the full width, else 0.
        ratios: the shares.
        widths: the full width of each stage, whose maps have half the side of those of the stage before.

    Returns:
        (n, NUMBERS_PER_STAGE stages + NUM_SIZES), of the dtype and on the device of `levels`.
    """
    shares, is_there = levels @ levels.new_tensor(ratios), levels.sum(dim=-1)
    narrowest = torch.where(is_there > 0, shares, 1.0).amin(dim=-1)
    mean = shares.sum(dim=-1) / is_there.sum(dim=-1)
    stages = torch.stack([narrowest.log(), mean.log(), is_there.mean(dim=-1) - 1], dim=-1)
    sizes = _sizes(shares, widths).log() - _sizes(torch.ones_like(shares[:1]), widths).log()
    return torch.cat([stages.flatten(1), sizes], dim=1)


def _sizes(shares: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """MACs and weights of the blocks' convolutions (n, 2), up to a factor; shares: (n, stages, slots), 0 for no block."""
    macs = weights = torch.zeros_like(shares[:, 0, 0])
    entering = shares[:, 0, 0] * widths[0]  # the stem is as wide as the first block
    for stage, width in enumerate(widths):
        for own in (shares[:, stage] * width).unbind(dim=1):
            added = own * (entering + own)
            macs, weights = macs + added / 4**stage, weights + added
            entering = torch.where(own > 0, own, entering)
    return torch.stack([macs, weights], dim=1)
