"""Named recipes: functions that return a complete configuration."""

import difflib
from collections.abc import Callable, Mapping

from dass.errors import ConfigError
from jobs.config import Config
from jobs.recipes.digits import digits, quickstart, smoke
from jobs.recipes.pretrained import pretrained
from jobs.recipes.tiny_imagenet import tiny10, tiny25_32px

RECIPES: Mapping[str, Callable[[], Config]] = {
    "quickstart": quickstart,
    "pretrained": pretrained,
    "digits": digits,
    "smoke": smoke,
    "tiny10": tiny10,
    "tiny25_32px": tiny25_32px,
}


def get_recipe(name: str) -> Config:
    """The configuration of a named recipe; ConfigError lists the names and the nearest one."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        raise ConfigError(
            f"--recipe must be one of {', '.join(RECIPES)} or a file ending in .toml, got {name!r}; "
            + (f"did you mean {close[0]}?" if close else "choose one of them")
        )
    return RECIPES[name]()
