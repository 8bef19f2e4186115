"""A recipe of the user's own: a TOML file that names what it starts from and what it changes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dass.errors import ConfigError
from jobs.config import Config, read_toml, source_in, with_values

DEFAULT = "quickstart"
OWN_IMAGES = "pretrained"  # what the default recipe is for images that the user gives
MAX_BYTES = 64 * 1024  # all keys there are take 2 KiB

Base = Callable[[str], Config]


def default_recipe(source: object, base: Base) -> str:
    """What a job starts from that names no recipe: the default one is cut to the measure of its own images."""
    return DEFAULT if source in (None, base(DEFAULT).data.source) else OWN_IMAGES


def from_toml(path: Path, base: Base, source: str | None = None) -> Config:
    """The configuration of a TOML file: `recipe = "NAME"` names what it starts from, tables override.

    base: the configuration of a recipe's name. source: of the images, where it is given beside the file.

    Raises:
        ConfigError: the file cannot be read or parsed, or holds an unknown key or a wrong value; the message names the
            file and the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(
                f"a recipe's file must have at most {MAX_BYTES} bytes, got more in {path}; correct the path"
            )
        text = data.decode()
        values = read_toml(text)
    except OSError as error:
        raise ConfigError(
            f"--recipe must name a recipe or a readable TOML file, got {path} ({error.strerror}); correct the path"
        ) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path} must be TOML, got: {error}; correct that line") from error
    default = default_recipe(source or source_in(values), base)
    try:
        return _configured(values, base, default)
    except ConfigError as error:
        raise ConfigError(f"{path}, line {_line_of(str(error), text, base, default)}: {error}") from error


def _configured(values: Mapping[str, Any], base: Base, default: str) -> Config:
    name = values.get("recipe", default)
    if not isinstance(name, str):
        raise ConfigError(f'recipe must be the name of a recipe, got {name!r}; for example recipe = "smoke"')
    return with_values(base(name), {key: value for key, value in values.items() if key != "recipe"})


def _line_of(message: str, text: str, base: Base, default: str) -> int:
    """The line where the key begins that makes a file wrong: the parser keeps no lines, so the file is read in parts.

    The first part, cut after a line, that is refused with the `message` of the whole ends with that key. One that is no
    TOML ends within a value.
    """
    lines = text.splitlines(keepends=True)
    begin = 1
    for end in range(1, len(lines) + 1):
        try:
            _configured(read_toml("".join(lines[:end])), base, default)
        except ConfigError as error:
            if str(error) == message:
                return begin
        except ValueError:  # the part ends within a value
            continue
        begin = end + 1
    return begin
