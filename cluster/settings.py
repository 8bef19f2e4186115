"""How lanes are shaped; a part of the configuration that never enters a run's identity."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from dass.errors import ConfigError


@dataclass(frozen=True)
class LaneConfig:
    """The fleet: how many lanes, what each holds, and how often it secures its work."""

    num: int = field(
        default=1, metadata={"help": "most lanes that train at the same time; as many as there is work for"}
    )
    min: int = field(
        default=1, metadata={"help": "lanes that stay while anything is left, also when all that is left waits"}
    )
    cpus: float = field(default=1.0, metadata={"help": "logical CPUs reserved per lane"})
    gpus: float = field(default=0.0, metadata={"help": "GPUs per lane, at most 1; a fraction shares one device"})
    memory_gb: float = field(default=0.0, metadata={"help": "memory reserved per lane; 0: not counted"})
    threads: int = field(default=1, metadata={"help": "torch threads per lane; a part of what fixes a result's bits"})
    cohort_size: int = field(
        default=16,
        metadata={"help": "most students trained in lockstep; a lane begins with 8 and goes by memory and step times"},
    )
    yield_every: int = field(default=20, metadata={"help": "optimiser steps between two looks at the outside world"})
    checkpoint_s: float = field(default=20.0, metadata={"help": "seconds between two checkpoints of a run"})
    lease_s: float = field(
        default=60.0, metadata={"help": "seconds without a heartbeat after which a lane counts as dead"}
    )
    hang_s: float = field(
        default=1800.0, metadata={"help": "seconds without a yield after which a lane is killed and started again"}
    )
    idle_s: float = field(
        default=60.0,
        metadata={"help": "seconds without work after which a lane beyond lanes.min gives its device back"},
    )
    memory_format: Literal["contiguous", "channels_last"] = field(
        default="channels_last", metadata={"help": "layout of images and filters; a part of what fixes a result's bits"}
    )
    cache_gb: float = field(
        default=20.0, metadata={"help": "bound, on each machine, of the disk space of cached packs; 0: no cache"}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "folder of that cache; none: one in the system's temporary folder"}
    )
    report_s: float = field(
        default=30.0, metadata={"help": "seconds between two reports of a lane in the store, which `status` reads"}
    )
    max_failures: int = field(default=3, metadata={"help": "restarts of one lane by Ray Train before the job fails"})

    def __post_init__(self) -> None:
        for name in ("num", "threads", "cohort_size", "yield_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"lanes.{name} must be >= 1, got {getattr(self, name)}; set lanes.{name}")
        if self.cpus <= 0:
            raise ConfigError(f"lanes.cpus must be > 0, got {self.cpus}; set lanes.cpus=1")
        if not 0 <= self.min <= self.num:
            raise ConfigError(f"lanes.min must be between 0 and lanes.num={self.num}, got {self.min}; set lanes.min")
        if not 0 <= self.gpus <= 1:
            raise ConfigError(
                f"lanes.gpus must be between 0 and 1, as a lane uses one device, got {self.gpus:g}; set lanes.gpus=1 and more "
                "lanes.num"
            )
        for name in ("memory_gb", "max_failures", "cache_gb"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"lanes.{name} must be >= 0 and finite, got {getattr(self, name)}; set lanes.{name}")
        for name in ("checkpoint_s", "lease_s", "hang_s", "idle_s", "report_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"lanes.{name} must be > 0 and finite, got {getattr(self, name)}; set lanes.{name}")
        if self.cache_dir is not None and not Path(self.cache_dir).is_absolute():
            raise ConfigError(
                f"lanes.cache_dir must be an absolute path, got {self.cache_dir!r}; lanes on other machines work in other folders"
            )

    @property
    def device(self) -> torch.device:
        """Where a lane trains."""
        return torch.device("cuda" if self.gpus > 0 else "cpu")

    @property
    def num_devices(self) -> float:
        """What a lane costs an hour's price of: GPUs where it holds any, else CPU cores."""
        return self.gpus or self.cpus

    @property
    def layout(self) -> torch.memory_format:
        """`memory_format` as torch names it."""
        return torch.channels_last if self.memory_format == "channels_last" else torch.contiguous_format
