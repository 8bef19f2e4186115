import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pytest
from hypothesis import given, settings

from cluster.schema import plain
from cluster.typed import read_value
from dass.errors import ConfigError
from dass.records import Recipe, Record
from tests.cluster.builders import records


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    number: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    colour: Colour
    kind: Literal["a", "b"]
    pairs: tuple[tuple[int, float | None], ...]
    three: tuple[int, str, bool]
    names: Mapping[str, str]
    rows: list[int] = field(default_factory=list)
    either: int | str | None = None
    anything: Any = None


GOOD: dict[str, Any] = {
    "inner": {"number": 3},
    "colour": "blue",
    "kind": "b",
    "pairs": [[1, 0.5], [2, None], [3, 4]],
    "three": [1, "x", True],
    "names": {"a": "b"},
}


def test_a_value_of_every_kind_is_read() -> None:
    read = read_value(Outer, {**GOOD, "either": "text", "anything": [{"x": None}], "rows": [1]})
    assert read == Outer(
        Inner(3),
        Colour.BLUE,
        "b",
        ((1, 0.5), (2, None), (3, 4.0)),
        (1, "x", True),
        {"a": "b"},
        [1],
        "text",
        [{"x": None}],
    )
    assert type(read.pairs[2][1]) is float
    assert read_value(Outer, GOOD).rows == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"inner": {"number": True}}, "inner: number: expected int, got True"),
        ({"inner": {"number": 3.0}}, "inner: number: expected int, got 3.0"),
        ({"inner": {"number": 3, "share": "half"}}, "inner: share: expected a number, got 'half'"),
        ({"inner": {"number": 3, "share": True}}, "share: expected a number, got True"),
        ({"inner": {"number": 3, "more": 1}}, "inner: Inner has no field 'more'"),
        ({"inner": {}}, "inner: Inner lacks number"),
        ({"inner": [3]}, "inner: expected an object with number, share"),
        ({"colour": "green"}, "colour: expected one of red, blue, got 'green'"),
        ({"colour": ["red"]}, "colour: expected one of"),
        ({"kind": "c"}, "kind: expected one of a, b, got 'c'"),
        ({"pairs": [[1]]}, "pairs: expected a list of 2"),
        ({"pairs": "12"}, "pairs: expected a list, got '12'"),
        ({"three": [1, 2, True]}, "three: expected str, got 2"),
        ({"names": {"a": 1}}, "names: expected str"),
        ({"names": [["a", "b"]]}, "names: expected an object"),
        ({"rows": [None]}, "rows: expected int, got None"),
        ({"either": 1.5}, "either: expected"),
    ],
)
def test_what_does_not_fit_is_told_by_its_field(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        read_value(Outer, {**GOOD, **change})


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_object_is_no_dataclass(value: object) -> None:
    with pytest.raises(ValueError, match="expected an object"):
        read_value(Inner, value)


def test_numbers_that_json_lacks_are_texts() -> None:
    assert read_value(Inner, {"number": 1, "share": "-Infinity"}).share == -math.inf
    assert math.isnan(read_value(Inner, {"number": 1, "share": "NaN"}).share)


def test_the_checks_of_a_class_hold_too() -> None:
    with pytest.raises(ValueError, match=r"recipe\.epochs must be >= 1"):
        read_value(Recipe, {"epochs": 0})
    with pytest.raises(ConfigError):
        Recipe(epochs=0)


def test_an_annotation_that_json_cannot_hold_is_our_own_mistake() -> None:
    with pytest.raises(TypeError, match=r"see cluster/typed\.py"):
        read_value(bytes, "text")


@settings(max_examples=60)
@given(records)
def test_what_was_written_is_read_back(record: Record) -> None:
    assert read_value(Record, json.loads(json.dumps(plain(record)))) == record
