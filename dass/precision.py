"""How exactly a device computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from dass.records import Precision

_CONVOLUTIONS: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # missing in its stubs


@contextmanager
def full_float32() -> Iterator[None]:
    """Let the convolutions of a GPU compute in float32 as a CPU's do, not in TF32, which keeps 10 bits of a factor.

    And by algorithms that give the same bits each time. Also a decorator. For the whole process, as long as the block lasts.
    """
    before = _CONVOLUTIONS.fp32_precision, torch.backends.cudnn.deterministic
    set_convolutions("ieee")
    try:
        yield
    finally:
        _CONVOLUTIONS.fp32_precision, torch.backends.cudnn.deterministic = before


@contextmanager
def rounding(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in this precision on the device: forward passes in the block, and backward passes of these.

    - `float32`: nothing is rounded, as in `full_float32`.
    - `tf32`: convolutions on a GPU keep 10 bits of a factor. A CPU has no such mode and computes in float32.
    - `bfloat16`: convolutions and matrix products keep 7 bits of a factor and of their results (autocast); weights, sums
      and what an optimiser does stay in float32.
    """
    with full_float32(), torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
        if precision == "tf32":
            set_convolutions("tf32")
        yield


def set_convolutions(mode: Literal["ieee", "tf32"]) -> None:
    """How a GPU convolves in this process from now on: in full float32 or in TF32, either way to the same bits each time."""
    _CONVOLUTIONS.fp32_precision, torch.backends.cudnn.deterministic = mode, True
