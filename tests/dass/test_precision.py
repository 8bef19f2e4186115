from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.precision import full_float32, rounding
from dass.records import Precision

CPU = torch.device("cpu")


def convolution() -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, generator=rng, requires_grad=True)
    F.conv2d(torch.randn(1, 3, 8, 8, generator=rng), weight).float().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize(("precision", "is_rounded"), [("float32", False), ("tf32", False), ("bfloat16", True)])
def test_bfloat16_alone_rounds_on_a_cpu(precision: Precision, is_rounded: bool) -> None:
    exact = convolution()
    with rounding(precision, CPU):
        found = convolution()
    assert torch.equal(found, exact) is not is_rounded
    torch.testing.assert_close(found, exact, rtol=2**-6, atol=0.05)
    assert torch.equal(convolution(), exact)


@pytest.mark.parametrize(("precision", "mode"), [("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")])
@pytest.mark.parametrize("before", ["float32", "tf32"])
def test_the_mode_of_a_gpu_is_that_of_the_innermost_block(before: Precision, precision: Precision, mode: str) -> None:
    cudnn: Any = torch.backends.cudnn
    with rounding(before, CPU):
        cudnn.deterministic = False
        outside = cudnn.conv.fp32_precision
        with full_float32():
            assert (cudnn.conv.fp32_precision, cudnn.deterministic) == ("ieee", True)
            with rounding(precision, CPU):
                assert (cudnn.conv.fp32_precision, cudnn.deterministic) == (mode, True)
            assert (cudnn.conv.fp32_precision, cudnn.deterministic) == ("ieee", True)
        assert (cudnn.conv.fp32_precision, cudnn.deterministic) == (outside, False)


def test_torchs_newer_settings_do_not_stand_in_the_way() -> None:
    """After them its older ones may not even be read."""
    cudnn: Any = torch.backends.cudnn
    with full_float32():
        with pytest.raises(RuntimeError, match="allow_tf32"):
            _ = cudnn.allow_tf32
        with full_float32():
            assert cudnn.conv.fp32_precision == "ieee"
