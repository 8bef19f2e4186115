"""What running out of memory looks like: torch's CPU allocator and its libraries have no exception of their own for it."""

import torch

_SIGNS = ("can't allocate memory", "not enough memory", "std::bad_alloc", "ALLOC_FAILED")  # the last one: cuBLAS, cuDNN


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was short, on any device, and that the process can go on.

    An AcceleratorError never does: after it the process can use its device no more.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    is_runtime = isinstance(error, RuntimeError) and not isinstance(error, torch.AcceleratorError)
    return is_runtime and any(sign in str(error) for sign in _SIGNS)
