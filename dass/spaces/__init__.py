"""The search spaces by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from dass.errors import ConfigError
from dass.spaces.small_resnet import SmallResNetSpace
from dass.spaces.space import Sampler, SearchSpace

__all__ = ["PRESETS", "Sampler", "SearchSpace", "SmallResNetSpace", "get_space"]

_EIGHTHS = tuple(eighths / 8 for eighths in range(1, 9))
_SIXTEENTHS = tuple(sixteenths / 16 for sixteenths in range(8, 17))
_WIDE = (32, 64, 128, 256)
_SLIM = (8, 16, 32, 64)

PRESETS: Mapping[str, SmallResNetSpace] = MappingProxyType(
    {
        space.name: space
        for space in (
            # The paper's ratios and the depths that contain its teacher: the default.
            SmallResNetSpace("paper5", (1, 2, 3, 4, 5), _WIDE, _EIGHTHS),
            # The paper's appendix to the letter: no student is as deep as the teacher.
            SmallResNetSpace("paper", (1, 2, 3, 4), _WIDE, _EIGHTHS, teacher_depth=5),
            # The released code's ratios, for anything compared with its files.
            SmallResNetSpace("released", (1, 2, 3, 4, 5), _WIDE, _SIXTEENTHS),
            # A quarter of the channels, for studies on a CPU.
            SmallResNetSpace("paper5_w8", (1, 2, 3, 4, 5), _SLIM, _EIGHTHS),
            # 256 students, for tests and demonstrations.
            SmallResNetSpace("smoke", (1, 2), _SLIM, (0.5, 0.75, 1.0)),
        )
    }
)


def get_space(name: str) -> SearchSpace:
    """The preset of this name.

    Raises:
        ConfigError: there is none; the message lists the names and the nearest one.
    """
    if name not in PRESETS:
        nearest = get_close_matches(name, PRESETS, n=1, cutoff=0)[0]
        raise ConfigError(f"space must be one of {', '.join(PRESETS)}, got {name!r}; did you mean {nearest}?")
    return PRESETS[name]
