"""Winograd's filtering against torch's own convolution, in twice the digits."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass import winograd

SHAPES = [(1, 8, 8, 96, 112), (3, 16, 16, 128, 32), (2, 4, 4, 5, 3), (7, 4, 12, 1, 8), (40, 32, 16, 16, 24)]


@pytest.mark.parametrize(("num", "height", "width", "channels", "out"), SHAPES)
def test_it_is_a_convolution_to_the_last_digits(num: int, height: int, width: int, channels: int, out: int) -> None:
    rng = torch.Generator().manual_seed(num)
    maps_NCHW = torch.randn(num, channels, height, width, generator=rng)
    weight = torch.randn(out, channels, 3, 3, generator=rng)
    bias = torch.randn(out, generator=rng)
    exact = F.conv2d(maps_NCHW.double(), weight.double(), bias.double(), padding=1)
    found = winograd.convolve(maps_NCHW.permute(0, 2, 3, 1).contiguous(), winograd.transform(weight), bias)
    assert (found.permute(0, 3, 1, 2) - exact).abs().max() <= 4e-6 * exact.abs().max()


def test_a_slice_of_channels_is_the_convolution_of_the_slice() -> None:
    rng = torch.Generator().manual_seed(0)
    maps, bias = torch.randn(2, 4, 4, 6, generator=rng), torch.randn(9, generator=rng)
    weight = torch.randn(9, 6, 3, 3, generator=rng)
    filters = winograd.transform(weight)
    found = winograd.convolve(maps[..., 2:5], filters[:, 2:5, 1:8], bias[1:8])
    alone = winograd.convolve(maps[..., 2:5].contiguous(), winograd.transform(weight[1:8, 2:5]), bias[1:8])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
