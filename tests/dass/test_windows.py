import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.windows import all_windows, convolve, to_rows, windows


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 5), (8, 8)])
def test_products_of_windows_are_torchs_convolution(height: int, width: int) -> None:
    maps, weight = numbers(2, 4, height, width), numbers(5, 4, 3, 3)
    expected = F.conv2d(maps, weight, stride=2, padding=1)
    torch.testing.assert_close(convolve(all_windows(maps.permute(0, 2, 3, 1)), weight).permute(0, 3, 1, 2), expected)


def test_so_are_their_first_and_second_derivatives() -> None:
    maps, weight = numbers(2, 3, 4, 4).requires_grad_(), numbers(2, 3, 3, 3).requires_grad_()

    def ours(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return convolve(all_windows(maps.permute(0, 2, 3, 1)), weight).permute(0, 3, 1, 2)

    def derivatives(result: torch.Tensor) -> list[torch.Tensor]:
        first = torch.autograd.grad(result.square().sum(), (maps, weight), create_graph=True)
        return [*first, *torch.autograd.grad(first[0].sin().sum() + first[1].sin().sum(), (maps, weight))]

    for own, expected in zip(
        derivatives(ours(maps, weight)), derivatives(F.conv2d(maps, weight, stride=2, padding=1)), strict=True
    ):
        torch.testing.assert_close(own, expected)


def test_windows_of_some_maps_are_those_of_all_in_the_wanted_order() -> None:
    maps, which = numbers(5, 4, 6, 3), torch.tensor([3, 0, 3])
    assert torch.equal(windows(to_rows(maps), 4, 6, which), all_windows(maps)[which])


def test_channels_last_filters_are_taken_as_they_lie() -> None:
    weight = numbers(5, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    assert weight.permute(0, 2, 3, 1).flatten(1).data_ptr() == weight.data_ptr()
