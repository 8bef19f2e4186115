"""The memory that one lane uses, and the room that it has: a GPU's as torch counts it, a machine's as the kernel does."""

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.settings import LaneConfig

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

# of each version of control groups: the files of limit and use, and what of the use is given up when somebody needs it
_CGROUP_VERSIONS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


@dataclass(frozen=True)
class MemoryUse:
    """In bytes: in use before a cohort was there, the most in use since then, and what may be in use (perhaps infinite)."""

    fixed_bytes: int
    peak_bytes: int
    room_bytes: float


def share_of(settings: LaneConfig) -> float:
    """The part of a device's memory that belongs to one lane: its fraction of a GPU, or one part for each lane beside it."""
    if settings.gpus > 0:
        return settings.gpus
    most = max(1, int((os.cpu_count() or 1) / settings.cpus))
    return 1 / min(settings.num, most)


def bound_memory(device: torch.device, share: float) -> None:
    """Let torch use no more of the current GPU than this share, so that lanes beside this one have theirs.

    What CUDA and its libraries take besides, some hundred MB a process, is not counted. A CPU is not bounded.
    """
    if device.type == "cuda" and share < 1:
        torch.cuda.set_per_process_memory_fraction(share)


class MemoryMeter:
    """Measures from its making on, so it is made before the cohort is; one at a time.

    Args:
        device: where the cohort trains.
        share: the lane's part of the device's memory, see `share_of`.
    """

    def __init__(self, device: torch.device, share: float) -> None:
        self._device = device
        self._share = share
        self._fixed_bytes = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._fixed_bytes = torch.cuda.memory_allocated(device)
        else:
            with suppress(OSError):  # where it is not allowed the peak is that of all the process's life, never less
                (PROC / "self/clear_refs").write_text("5")

    def read(self) -> MemoryUse:
        """What is known at the end of the cohort.

        On a CPU nothing is called fixed: the process keeps what was freed, so its size before a cohort tells little.
        """
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            room = min(total * self._share, free + torch.cuda.memory_reserved(self._device))
            return MemoryUse(self._fixed_bytes, torch.cuda.max_memory_allocated(self._device), room)
        process = _sizes(PROC / "self/status")
        if "VmHWM" not in process:
            return MemoryUse(0, 0, math.inf)  # no Linux
        return MemoryUse(0, process["VmHWM"], process["VmRSS"] + self._share * free_bytes())


def used_bytes(device: torch.device) -> int:
    """What this process uses now: of the GPU as torch counts it, else of the machine; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return _sizes(PROC / "self/status").get("VmRSS", 0)


def free_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> float:
    """What this machine, or the container on it, could still give; infinite where the system does not tell."""
    free = float(_sizes(proc / "meminfo").get("MemAvailable", math.inf))
    for limit, use, stat, reclaimable in _CGROUP_VERSIONS:
        with suppress(OSError, ValueError, KeyError):  # not this version; or "max", no limit
            used = int((cgroup / use).read_text()) - _counts(cgroup / stat)[reclaimable]
            free = min(free, max(0.0, int((cgroup / limit).read_text()) - used))
    return free


def _sizes(path: Path) -> dict[str, int]:
    """Those lines of a file of the kernel that read `name:   number kB`, in bytes."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[2:] == ["kB"]}


def _counts(path: Path) -> dict[str, int]:
    """The lines `name number` of a file of the kernel."""
    return {name: int(count) for name, count in (line.split() for line in path.read_text().splitlines())}
