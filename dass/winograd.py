"""3x3 convolutions by Winograd's minimal filtering: 16 products for 4 outputs instead of 36 (Lavin & Gray, arXiv 1509.09308).

Tiles of 4x4 inputs, of which each gives 2x2 outputs, and the filters are transformed so that a convolution becomes 16
matrix products over channels. The transforms add, subtract and halve, so results are as exact as those of a direct
convolution; larger tiles would save more products and lose digits.

Shape legend: n maps, H and W even, C channels in, O out.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

TILE = 2  # outputs of a tile, each way
_INPUT = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_FILTER = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])
_INPUT_2D, _OUTPUT_2D = torch.kron(_INPUT, _INPUT), torch.kron(_OUTPUT, _OUTPUT)
_REACH = len(_INPUT)
_BLOCK = 2**16  # numbers in the maps that are transformed at a time, so that the tiles stay in the cache


def transform(weight: torch.Tensor) -> torch.Tensor:
    """Filters (O, C, 3, 3) as `convolve` takes them: (16, C, O), of which any slice of channels is a view."""
    return torch.einsum("ap,oipq,bq->abio", _FILTER, weight, _FILTER).flatten(0, 1).contiguous()


def convolve(maps_NHWC: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The convolution with stride 1 and padding 1: maps (n, H, W, C) to (n, H, W, O)."""
    num, height, width, channels = maps_NHWC.shape
    out = maps_NHWC.new_empty(num, height, width, filters.shape[2])
    step = max(1, _BLOCK // (height * width * max(channels, filters.shape[2])))
    for first in range(0, num, step):
        _convolve(maps_NHWC[first : first + step], filters, bias, out[first : first + step])
    return out


def _convolve(maps: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> None:
    padded = F.pad(maps, (0, 0, 1, 1, 1, 1))
    num, rows, columns = len(maps), maps.shape[1] // TILE, maps.shape[2] // TILE
    by_map, by_row, by_column, by_channel = padded.stride()
    tiles = padded.as_strided(
        (_REACH, _REACH, num, rows, columns, maps.shape[3]),
        (by_row, by_column, by_map, TILE * by_row, TILE * by_column, by_channel),
    ).reshape(_REACH**2, -1)
    products = torch.bmm((_INPUT_2D @ tiles).view(_REACH**2, -1, maps.shape[3]), filters)
    found = (_OUTPUT_2D @ products.view(_REACH**2, -1)).view(TILE, TILE, num, rows, columns, -1)
    torch.add(found.permute(2, 3, 0, 4, 1, 5), bias, out=out.view(num, rows, TILE, columns, TILE, -1))
