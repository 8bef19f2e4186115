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


@pytest.mark.parametrize(("precision", "is_allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_the_mode_of_a_gpu_is_that_of_the_block(
    precision: Precision, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with full_float32():
        with rounding(precision, CPU):
            assert torch.backends.cudnn.allow_tf32 is is_allowed
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is True
