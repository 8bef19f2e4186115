"""What a device costs in an hour: examples by model, or what the configuration says.

The examples are near what large clouds asked in the United States in 2025, in USD for an hour: of a whole node with one
such GPU and at least 8 CPUs and 32 GiB (of an eighth of a node with eight, where there is no such node), or of one CPU core.
They are for planning; yours differ: set prices.on_demand_per_hour and prices.spot_per_hour.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dass.errors import ConfigError

Market = Literal["on_demand", "spot"]

CPU_CORE = "CPU core"
EXAMPLES: Mapping[str, tuple[float, float]] = {  # part of the device's name: (on demand, spot)
    "H200": (7.90, 3.50),
    "H100": (6.90, 3.00),
    "A100": (3.67, 1.50),
    "L40S": (2.24, 0.90),
    "A10G": (1.21, 0.50),
    "L4": (0.98, 0.40),
    "V100": (3.06, 1.00),
    "T4": (0.75, 0.30),
    CPU_CORE: (0.045, 0.018),
}
DEAREST = "H200"  # what a GPU that no example names is taken for
GPU_NAMES = re.compile("NVIDIA|Tesla|Quadro|Instinct|(?<!with )(?<!w/ )Radeon")  # "with": a CPU's name


@dataclass(frozen=True)
class Price:
    """USD for one device for an hour, and where that is from."""

    on_demand: float
    spot: float
    source: str


@dataclass(frozen=True)
class PriceConfig:
    """What a device costs where this runs."""

    on_demand_per_hour: float | None = field(
        default=None,
        metadata={"help": "USD per GPU-hour, or core-hour on CPUs; none: an example by the device's model"},
    )
    spot_per_hour: float | None = field(
        default=None, metadata={"help": "the same for devices that may be taken away; none: an example"}
    )
    market: Market = field(
        default="on_demand",
        metadata={"help": "which of the two prices is paid: for the cost so far and collect.max_cost"},
    )

    def __post_init__(self) -> None:
        for name in ("on_demand_per_hour", "spot_per_hour"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ConfigError(f"prices.{name} must be >= 0, got {value}; set prices.{name}")

    def of(self, device: str) -> Price:
        """The price of a device with this model name; a GPU that no example names costs what the dearest does."""
        model = next((name for name in EXAMPLES if re.search(rf"\b{name}\b", device)), None)
        model = model or (DEAREST if GPU_NAMES.search(device) else CPU_CORE)
        on_demand, spot = EXAMPLES[model]
        given = (self.on_demand_per_hour, self.spot_per_hour)
        source = f"example for {model}" if None in given else "as set"
        return Price(on_demand if given[0] is None else given[0], spot if given[1] is None else given[1], source)

    def cost(self, device_s: Mapping[str, float]) -> float:
        """USD of device-seconds by device, at the price that is paid."""
        return sum(seconds / 3600 * self._paid(device) for device, seconds in device_s.items())

    def _paid(self, device: str) -> float:
        price = self.of(device)
        return price.spot if self.market == "spot" else price.on_demand
