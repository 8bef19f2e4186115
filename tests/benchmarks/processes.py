"""The memory of a process and all that it starts, sampled while it works."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.benchmarks.measure import sampled

EVERY_S = 1.0  # reading PSS costs some milliseconds for each process


class TreeMemory:
    """The peak so far of what a process and all its descendants hold; memory that n of them share counts 1/n for each."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.peak_mb = 0.0

    def look(self) -> None:
        """Take one sample."""
        with suppress(psutil.Error):
            family = [self._root, *self._root.children(recursive=True)]
            self.peak_mb = max(self.peak_mb, sum(map(_pss_mb, family)))


def _pss_mb(process: psutil.Process) -> float:
    try:
        return float(getattr(process.memory_full_info(), "pss", 0)) / 2**20
    except psutil.Error:  # it ended, or is not ours
        return 0.0


@contextmanager
def watched(pid: int) -> Iterator[TreeMemory]:
    """Samples during a `with` block."""
    memory = TreeMemory(pid)
    try:
        with sampled(memory.look, EVERY_S):
            yield memory
    finally:
        memory.look()
