"""Dataclasses from JSON types, every value checked against the annotation of its field; nothing is converted silently.

What an annotation means here: float takes any number and the texts NaN, Infinity and -Infinity (JSON has none for
them); int and bool take nothing but their own kind; a tuple takes a list; an enum its value; a dataclass an object, or
one of its own instances. A field that is missing stands at its default, and one that the class does not have is an
error. The checks of a class are worked out once, so a database of many records is read at the speed of its JSON.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
_Read = Callable[[Any], Any]

_FLOAT_END = 10**308  # integers from here on are no float
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_MAPPINGS = (dict, Mapping)


def read_value(kind: type[_T], value: Any) -> _T:  # noqa: ANN401 - any JSON type
    """`value`, made of JSON types, as the class or annotation `kind`.

    Raises:
        ValueError: it does not fit; the message names the field.
        TypeError: an annotation in it is not supported.
    """
    read: Callable[[Any], _T] = _reader(kind)  # type: ignore[arg-type]
    return read(value)


@cache
def _reader(kind: Any) -> _Read:  # noqa: ANN401
    """The check of one annotation."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if kind is float:
        return _read_float
    if kind in (int, str, bool, types.NoneType):
        return _exactly(kind)
    if origin is Literal:
        return _one_of(args)
    if origin in (Union, types.UnionType):
        return _any_of([_reader(arg) for arg in args if arg is not types.NoneType], types.NoneType in args, kind)
    if origin is tuple:
        return _sequence(args)
    if origin is list:
        return _list(_reader(args[0]))
    if origin in _MAPPINGS and args[0] is str:
        return _mapping(_reader(args[1]))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    raise TypeError(f"a field must be of a type that JSON can hold, got {kind}; see cluster/typed.py")


def _wrong(expected: str, value: Any) -> ValueError:  # noqa: ANN401
    return ValueError(f"expected {expected}, got {value!r:.80}")


def _read_float(value: Any) -> float:  # noqa: ANN401
    if type(value) is float:
        return value
    if type(value) is int and abs(value) < _FLOAT_END:
        return float(value)
    if type(value) is str and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    raise _wrong("a number", value)


def _exactly(kind: type) -> _Read:
    def read(value: Any) -> Any:  # noqa: ANN401
        if type(value) is not kind:
            raise _wrong(kind.__name__, value)
        return value

    return read


def _one_of(choices: tuple[Any, ...]) -> _Read:
    def read(value: Any) -> Any:  # noqa: ANN401
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise _wrong(f"one of {', '.join(map(str, choices))}", value)
        return value

    return read


def _any_of(readers: list[_Read], has_none: bool, kind: Any) -> _Read:  # noqa: ANN401
    def read(value: Any) -> Any:  # noqa: ANN401
        if value is None and has_none:
            return None
        if len(readers) == 1:
            return readers[0](value)
        for reader in readers:
            try:
                return reader(value)
            except ValueError:
                continue
        raise _wrong(str(kind), value)

    return read


def _sequence(kinds: tuple[Any, ...]) -> _Read:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        item = _reader(kinds[0])

        def read_all(value: Any) -> Any:  # noqa: ANN401
            if not isinstance(value, list | tuple):
                raise _wrong("a list", value)
            return tuple(map(item, value))

        return read_all
    items = [_reader(kind) for kind in kinds]

    def read_each(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, list | tuple) or len(value) != len(items):
            raise _wrong(f"a list of {len(items)}", value)
        return tuple(item(part) for item, part in zip(items, value, strict=True))

    return read_each


def _list(item: _Read) -> _Read:
    read_all = _sequence((Any, ...))
    return lambda value: list(map(item, read_all(value)))


def _mapping(item: _Read) -> _Read:
    def read(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Mapping) or not all(type(key) is str for key in value):
            raise _wrong("an object", value)
        return {key: item(part) for key, part in value.items()}

    return read


def _enum(kind: type[Enum]) -> _Read:
    members = {member.value: member for member in kind}

    def read(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, str | int) or value not in members:
            raise _wrong(f"one of {', '.join(map(str, members))}", value)
        return members[value]

    return read


def _dataclass(kind: type) -> _Read:
    hints = get_type_hints(kind)
    fields = {f.name: _reader(hints[f.name]) for f in dataclasses.fields(kind) if f.init}
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }

    def read(value: Any) -> Any:  # noqa: ANN401
        if type(value) is kind:
            return value
        if not isinstance(value, Mapping):
            raise _wrong(f"an object with {', '.join(fields)}", value)
        if missing := required - value.keys():
            raise ValueError(f"{kind.__name__} lacks {', '.join(sorted(missing))}")
        given = {}
        for name, part in value.items():
            if name not in fields:
                raise ValueError(f"{kind.__name__} has no field {name!r:.80}")
            try:
                given[name] = fields[name](part)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return kind(**given)

    return read
