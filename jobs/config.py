"""The whole configuration of a job: a recipe's values, then a TOML file's, then `--set a.b=value`.

Each part's dataclass lives beside its owner and checks itself; here they are only put together, so that an unknown key
or a value of the wrong type is an error before anything runs.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import dacite

from cluster.settings import LaneConfig
from dass.data.tasks import DataConfig
from dass.errors import ConfigError
from dass.kd.teacher import TEACHER_RECIPE
from dass.meta.train import MetaConfig
from dass.records import Recipe
from dass.search.select import SearchConfig
from dass.spaces import get_space
from dass.spaces.space import Sampler


@dataclass(frozen=True)
class CollectConfig:
    """Which students are distilled to make the database."""

    students_per_task: int = field(default=200, metadata={"help": "KD runs per meta-training and meta-validation task"})
    target_students: int = field(
        default=0, metadata={"help": "KD runs on the target, only to check the predictor with"}
    )
    sampler: Sampler = field(
        default="uniform", metadata={"help": "uniform, or macs_stratified to cover all sizes alike"}
    )
    sample_seed: int = field(default=0, metadata={"help": "seed of the students drawn"})
    seed: int = field(default=0, metadata={"help": "seed of the runs"})

    def __post_init__(self) -> None:
        for name, least in (("students_per_task", 2), ("target_students", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"collect.{name} must be >= {least}, got {getattr(self, name)}; set collect.{name}")


@dataclass(frozen=True)
class DistilConfig:
    """How the winner, and the controls beside it, are trained for good."""

    seeds: tuple[int, ...] = field(default=(1, 2, 3), metadata={"help": "one run per seed"})
    controls: bool = field(
        default=True, metadata={"help": "also distil a random and the largest student in the budget"}
    )

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"distil.seeds must be distinct and at least one, got {self.seeds}; set distil.seeds=[1]")


@dataclass(frozen=True)
class Config:
    """Everything that a job can be told."""

    name: str = field(default="custom", metadata={"help": "the recipe that these values began as"})
    space: str = field(default="paper5", metadata={"help": "preset of the search space"})
    data: DataConfig = field(default_factory=DataConfig)
    teacher: Recipe = TEACHER_RECIPE
    student: Recipe = Recipe()
    final: Recipe = Recipe()
    lanes: LaneConfig = field(default_factory=LaneConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)

    def __post_init__(self) -> None:
        get_space(self.space)
        if self.teacher.loss != "ce" or self.teacher.init != "scratch":
            raise ConfigError(
                f"a teacher learns from labels alone: teacher.loss must be 'ce' and teacher.init 'scratch', got "
                f"{self.teacher.loss!r} and {self.teacher.init!r}"
            )


def with_values(config: Config, values: Mapping[str, Any], origin: str) -> Config:
    """`config` with nested `values` laid over it.

    Raises:
        ConfigError: a key is unknown (the nearest legal ones are named) or a value has the wrong type or range;
            `origin` says where it was written.
    """
    merged = _merge(dataclasses.asdict(config), values, "", origin)
    try:
        return dacite.from_dict(
            Config, merged, dacite.Config(strict=True, cast=[tuple], type_hooks={float: _float, int: _int})
        )
    except dacite.DaciteFieldError as error:
        raise ConfigError(f"{origin}: {error}; `--help` lists every key with its type") from error
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


def from_toml(path: Path, recipe: Any) -> Config:  # noqa: ANN401 - a function from a recipe's name to its Config
    """The configuration of a TOML file: `recipe = "NAME"` names what it starts from, tables override.

    Raises:
        ConfigError: the file cannot be read or parsed, or holds an unknown key or a wrong value.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--recipe must name a recipe or a readable TOML file, got {path} ({error.strerror})"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be TOML, got {error}; correct that line") from error
    return with_values(recipe(values.pop("recipe", "quickstart")), values, str(path))


def parse_setting(setting: str) -> dict[str, Any]:
    """`a.b=value` as nested values; the value is TOML (`3`, `0.1`, `true`, `[1, 2]`, `"text"`) or bare text.

    Raises:
        ConfigError: there is no `=` or no key.
    """
    path, separator, text = setting.partition("=")
    if not separator or not path.strip():
        raise ConfigError(f"--set must have the form a.b=value, got {setting!r}; for example --set collect.seed=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text.strip() == "none" else text.strip()
    nested: Any = value
    for key in reversed(path.strip().split(".")):
        nested = {key: nested}
    return dict(nested)


def keys(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, value, meaning) of every setting, for help."""
    return _keys(config, "")


def _keys(part: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:  # noqa: ANN401 - any config dataclass
    hints = get_type_hints(type(part))
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}{f.name}.")
        else:
            kind = (
                hints[f.name].__name__ if isinstance(hints[f.name], type) else str(hints[f.name]).replace("typing.", "")
            )
            yield prefix + f.name, kind, str(value), str(f.metadata.get("help", ""))


def _merge(base: dict[str, Any], values: Mapping[str, Any], prefix: str, origin: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        if key not in base:
            raise ConfigError(f"{origin}: unknown key {prefix + key!r}; {_nearest(prefix + key, _paths(base, prefix))}")
        is_table = isinstance(base[key], dict)
        if is_table != isinstance(value, Mapping):
            raise ConfigError(f"{origin}: {prefix + key} is {'a table' if is_table else 'a value'}, got {value!r}")
        merged[key] = _merge(base[key], value, f"{prefix}{key}.", origin) if is_table else value
    return merged


def _paths(base: Mapping[str, Any], prefix: str) -> list[str]:
    return [prefix + key for key in base]


def _nearest(key: str, legal: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, legal, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"legal keys are {', '.join(legal)}"


def _float(value: Any) -> Any:  # noqa: ANN401 - dacite checks the result
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _int(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, bool):
        raise ConfigError(f"expected an integer, got {value}; write a number")
    return value
