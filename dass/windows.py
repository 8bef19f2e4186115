"""A 3x3 convolution of stride 2 and padding 1 as a product of matrices: each window of a map is a row of the first.

Torch's own convolution is as fast for a batch, but not for the one example that adaptation looks at, nor for its second
derivatives; a product of matrices is, and its derivatives are products again.

Shape legend: n maps of C channels and h x w places; their windows lie on a grid of h' x w' with h' = ceil(h / 2).
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

SIZE, STRIDE = 3, 2


def to_rows(maps: torch.Tensor) -> torch.Tensor:
    """(1 + n h w, C): the places of maps (n, h, w, C), one after the other, below a row of zeros, the padding."""
    return F.pad(maps.reshape(-1, maps.shape[-1]), (0, 0, 1, 0))


def windows(rows: torch.Tensor, height: int, width: int, which: torch.Tensor) -> torch.Tensor:
    """(n, h', w', 9 C): the windows of the maps `which`, int64 (n,), of those that `to_rows` has put into rows."""
    places = torch.arange(1, 1 + height * width, device=rows.device).view(height, width)
    taps = F.pad(places, (1, 1, 1, 1)).unfold(0, SIZE, STRIDE).unfold(1, SIZE, STRIDE).flatten(2)
    index = torch.where(taps > 0, taps + height * width * which[:, None, None, None], 0)
    return rows.index_select(0, index.flatten()).view(*index.shape[:3], -1)


def all_windows(maps: torch.Tensor) -> torch.Tensor:
    """(n, h', w', 9 C): the windows of maps (n, h, w, C)."""
    num, height, width, _ = maps.shape
    return windows(to_rows(maps), height, width, torch.arange(num, device=maps.device))


def convolve(read: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(n, h', w', D): the convolution of windows (n, h', w', 9 C) with filters (D, C, 3, 3), best channels-last."""
    return F.linear(read, weight.permute(0, 2, 3, 1).flatten(1))
