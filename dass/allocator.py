"""The C library's allocator, told to keep what is freed.

glibc gets a large tensor as fresh pages from the system and gives pages back as soon as many are free, so that a training on
the CPU spends much of its time on page faults. Results do not depend on where a tensor lies.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Reuse freed memory in this process from now on; False where the C library is not glibc, and nothing changed.

    The process then holds what it held at its peak until it ends. For the process that trains to call, at its start.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
