"""The whole configuration of a job: a recipe's values, then a TOML file's, then `--set a.b=value`.

Each part's dataclass lives beside its owner and checks itself; here they are only put together, so that an unknown key
or a value of the wrong type is an error before anything runs.
"""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cluster.settings import LaneConfig
from dass.baselines.meta_d2a import MetaD2AConfig
from dass.baselines.tans import TansConfig
from dass.data.tasks import DataConfig
from dass.errors import ConfigError
from dass.evaluation import EvaluateConfig
from dass.kd.teacher import TEACHER_RECIPE
from dass.meta.train import MetaConfig
from dass.meta.tuning import TuneConfig
from dass.records import Recipe
from dass.search.select import SearchConfig
from dass.spaces import get_space
from dass.spaces.space import Sampler
from jobs.prices import PriceConfig

MAX_PARTS = 8  # of a key; no key has more than two
NONE = "none"  # how a setting without a value is written: TOML has no word for it

_LONG_INTEGER = re.compile(r"0[xob][0-9A-Fa-f_]{1000}")  # decimal ones are refused by Python
_Part = TypeVar("_Part")


MACS_LIMITS = ("max_macs", "max_macs_ratio")  # of SearchConfig; only one may be set


@dataclass(frozen=True)
class CollectConfig:
    """Which students are distilled to make the database."""

    students_per_task: int = field(default=200, metadata={"help": "KD runs per meta-training and meta-validation task"})
    target_students: int = field(
        default=0, metadata={"help": "KD runs on each target (see evaluate.targets), only to check predictors with"}
    )
    target_repeats: int = field(
        default=0, metadata={"help": "how many of these are run with the next seed too, to measure the labels' noise"}
    )
    target_draw: Literal["shared", "own"] = field(
        default="shared",
        metadata={
            "help": "shared: the same students on every target; own: others on each, which tell more of a method"
        },
    )
    sampler: Sampler = field(
        default="uniform", metadata={"help": "uniform, or macs_stratified to cover all sizes alike"}
    )
    sample_seed: int = field(default=0, metadata={"help": "seed of the students drawn"})
    seed: int = field(default=0, metadata={"help": "seed of the runs"})
    first: tuple[str, ...] = field(
        default=(), metadata={"help": "names of tasks whose runs go before those of the others, in this order"}
    )
    max_device_hours: float | None = field(
        default=None, metadata={"help": "stop when lanes on this store have held devices for so long; none: no limit"}
    )
    max_cost: float | None = field(
        default=None, metadata={"help": "the same in USD, by the price of prices.market; none: no limit"}
    )

    def __post_init__(self) -> None:
        for name, least in (("students_per_task", 2), ("target_students", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"collect.{name} must be >= {least}, got {getattr(self, name)}; set collect.{name}")
        if not 0 <= self.target_repeats <= self.target_students:
            raise ConfigError(
                f"collect.target_repeats must be between 0 and collect.target_students={self.target_students}, got "
                f"{self.target_repeats}; set collect.target_repeats"
            )
        for name in ("max_device_hours", "max_cost"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"collect.{name} must be > 0, got {value}; set collect.{name}=none for no limit")


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
    predictor: Literal["store", "package"] = field(
        default="store", metadata={"help": "whose predictor a search asks: that of `meta-train`, or the one that ships"}
    )
    data: DataConfig = field(default_factory=DataConfig)
    teacher: Recipe = TEACHER_RECIPE
    student: Recipe = Recipe()
    final: Recipe = Recipe()
    lanes: LaneConfig = field(default_factory=LaneConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    meta_d2a: MetaD2AConfig = field(default_factory=MetaD2AConfig)
    tans: TansConfig = field(default_factory=TansConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    prices: PriceConfig = field(default_factory=PriceConfig)

    def __post_init__(self) -> None:
        size, most = get_space(self.space).size, max(self.collect.students_per_task, self.collect.target_students)
        if most > size:
            raise ConfigError(
                f"the students of a task are different: space {self.space} has {size}, got a collection of {most} per task; "
                "lower collect.students_per_task and collect.target_students, or choose a larger space"
            )
        if self.teacher.loss != "ce" or self.teacher.init != "scratch":
            raise ConfigError(
                f"a teacher learns from labels alone: teacher.loss must be 'ce' and teacher.init 'scratch', got "
                f"{self.teacher.loss!r} and {self.teacher.init!r}; set both so"
            )
        for name in ("teacher", "student", "final"):
            padding = getattr(self, name).crop_padding
            if padding is not None and padding >= self.data.resolution:
                raise ConfigError(
                    f"{name}.crop_padding must be less than data.resolution, got {padding} and {self.data.resolution}; "
                    f"set {name}.crop_padding=none for the default"
                )


def with_values(config: Config, values: Mapping[str, Any], origin: str = "") -> Config:
    """`config` with nested `values` laid over it.

    An integer may stand for a float, a list for a tuple, and the text `none` for no value. One of the two MACs limits takes
    the place of the other.

    Raises:
        ConfigError: a key is unknown (the nearest legal ones are named) or a value has the wrong type or range;
            `origin` says where it was written, unless the caller does.
    """
    try:
        return _overlaid(config, _with_one_limit(values), "", [key for key, *_ in keys(config)])
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from error


def _with_one_limit(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values`, where a MACs limit set alone takes the other one of an earlier layer away."""
    search = values.get("search")
    if not isinstance(search, Mapping):
        return values
    given = [name for name in MACS_LIMITS if name in search]
    if len(given) != 1 or search[given[0]] in (None, NONE):
        return values
    return {**values, "search": {**dict.fromkeys(MACS_LIMITS), **search}}


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """`config` with every `a.b=value` laid over it at once, so their order matters only where a key is repeated."""
    return with_values(config, parse_settings(settings), "--set")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The nested values of every `a.b=value`; ConfigError as of `parse_setting`."""
    values: dict[str, Any] = {}
    for setting in settings:
        values = _merged(values, parse_setting(setting))
    return values


def source_in(values: Mapping[str, Any]) -> Any:  # noqa: ANN401 - not checked yet
    """What nested values give as `data.source`, or None."""
    data = values.get("data")
    return data.get("source") if isinstance(data, Mapping) else None


def read_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text.

    Raises:
        ValueError: it is no TOML, holds an integer that is too long to be shown, or is nested too deeply.
    """
    if _LONG_INTEGER.search(text):
        raise ValueError("an integer of more than 1,000 digits")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("values nested too deeply") from error


def parse_setting(setting: str) -> dict[str, Any]:
    """`a.b=value` as nested values; the value is TOML (`3`, `0.1`, `true`, `[1, 2]`, `"text"`) or bare text.

    Raises:
        ConfigError: there is no `=` or no key.
    """
    path, separator, text = setting.partition("=")
    parts = path.split(".")
    if not separator or len(parts) > MAX_PARTS or not all(part.strip() for part in parts):
        raise ConfigError(f"--set must have the form a.b=value, got {setting!r:.200}; for example --set collect.seed=1")
    try:
        parsed = read_toml(f"value = {text}")
        nested: Any = parsed["value"] if len(parsed) == 1 else text.strip()
    except ValueError:
        nested = text.strip()
    for key in reversed(parts):
        nested = {key.strip(): nested}
    return dict(nested)


def keys(config: Config) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, value, meaning) of every setting; `key=value` is what `parse_setting` reads back."""
    return _keys(config, "")


def _keys(part: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:  # noqa: ANN401 - any config dataclass
    hints = get_type_hints(type(part))
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, _kind_name(hints[f.name]), _text(value), str(f.metadata.get("help", ""))


def _overlaid(part: _Part, values: Mapping[str, Any], prefix: str, legal: Sequence[str]) -> _Part:
    """`part`, a config dataclass, with `values` laid over it; `prefix` is its own key, `legal` are those of all parts."""
    hints = get_type_hints(type(part))
    changes = {}
    for name, value in values.items():
        key = prefix + name
        if name not in hints:
            raise ConfigError(f"unknown key {key!r}; {_nearest_keys(name, prefix, list(hints), legal)}")
        current = getattr(part, name)
        is_table = dataclasses.is_dataclass(current)
        if is_table and not isinstance(value, Mapping):
            example = f"{key}.{dataclasses.fields(current)[0].name}"
            raise ConfigError(f"{key} is a group of keys, got {_text(value)}; set one of them, such as {example}")
        changes[name] = _overlaid(current, value, f"{key}.", legal) if is_table else _checked(value, hints[name], key)
    try:
        return dataclasses.replace(part, **changes)  # type: ignore[type-var]
    except ConfigError as error:  # a recipe does not know which one it is: say student.lr, not recipe.lr
        raise ConfigError(re.sub(r"\b(recipe|predictor)\.", prefix, str(error))) from error


def _checked(value: Any, kind: Any, key: str) -> Any:  # noqa: ANN401 - the type is what is checked
    """`value` as one of the type `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # X | None
        return None if value in (None, NONE) else _checked(value, args[0], key)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(item, args[0], key) for item in value)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} must fit into 64 bits, got {value}; write a smaller number")
    if kind is float and type(value) is int:
        value = float(value)
    if origin is Literal and value not in args:
        raise ConfigError(f"{key} must be one of {', '.join(args)}, got {value!r}; {_nearest(str(value), args)}")
    if origin is not Literal and type(value) is not kind:
        raise ConfigError(
            f"{key} must be of type {_kind_name(kind)}, got {value!r}; `dass keys` shows every key with its type"
        )
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{key} must be a finite number, got {value}; write one")
    return value


def _kind_name(kind: Any) -> str:  # noqa: ANN401 - a type or what typing makes of one
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return " | ".join(args)
    if get_origin(kind) is tuple:
        return f"[{_kind_name(args[0])}, ...]"
    return " | ".join(map(_kind_name, args)) if args else NONE if kind is NoneType else str(kind.__name__)


def _text(value: Any) -> str:  # noqa: ANN401 - any setting
    """A setting's value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return NONE if value is None else str(value)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with those of `second` in the place of those of `first`."""
    merged = dict(first)
    for name, value in second.items():
        are_tables = isinstance(value, Mapping) and isinstance(first.get(name), Mapping)
        merged[name] = _merged(first[name], value) if are_tables else value
    return merged


def _nearest_keys(name: str, prefix: str, siblings: Sequence[str], legal: Sequence[str]) -> str:
    """The neighbours that were probably meant; else the keys of that name elsewhere; else all neighbours."""
    close = difflib.get_close_matches(name, siblings)
    meant = [prefix + sibling for sibling in close] or [key for key in legal if key.endswith(f".{name}")]
    return (
        f"did you mean {' or '.join(meant)}?" if meant else f"legal keys are {', '.join(prefix + s for s in siblings)}"
    )


def _nearest(value: str, legal: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, legal, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "choose one of them"
