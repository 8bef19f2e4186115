"""Kernels of convolutions on a CPU, of which more are kept than oneDNN would.

oneDNN generates a kernel for each shape that it meets, in half a millisecond, and keeps the 1,024 used last. A search
meets some 3,000 again and again, candidates in groups of all sizes: with those kept it takes 7 s instead of 10.
"""

import os

NUM_KEPT = 8192  # 40 KB each


def keep_kernels() -> None:
    """Keep them all, from the first convolution of this process on; after it the call does nothing.

    What `ONEDNN_PRIMITIVE_CACHE_CAPACITY` says already stands, and processes started from this one inherit it.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(NUM_KEPT))
