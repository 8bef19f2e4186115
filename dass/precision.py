"""How exactly a GPU computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Let the convolutions of a GPU compute in float32 as a CPU's do, not in TF32, which keeps 10 bits of a factor.

    Also a decorator. For the whole process, as long as the block lasts.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
