"""How exactly a device computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dass.records import Precision


@contextmanager
def full_float32() -> Iterator[None]:
    """Let the convolutions of a GPU compute in float32 as a CPU's do, not in TF32, which keeps 10 bits of a factor.

    Also a decorator. For the whole process, as long as the block lasts.
    """
    with _tf32(is_allowed=False):
        yield


@contextmanager
def rounding(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in this precision on the device: forward passes in the block, and backward passes of these.

    - `float32`: nothing is rounded, as `full_float32`.
    - `tf32`: convolutions on a GPU keep 10 bits of a factor. A CPU has no such mode and computes in float32.
    - `bfloat16`: convolutions and matrix products keep 7 bits of a factor and of their results (autocast); weights, sums
      and what an optimiser does stay in float32.
    """
    with _tf32(is_allowed=precision == "tf32"), torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
        yield


@contextmanager
def _tf32(*, is_allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
