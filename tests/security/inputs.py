"""What the fuzzer feeds: real files, documents and texts with a few alterations, and arbitrary ones."""

import copy
import io
import json
import math
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from cluster.tables import records_to_table, table_to_parquet
from dass.tensors import pack_tensors, unpack_tensors
from jobs.config import keys
from jobs.recipes import get_recipe
from tests.cluster.builders import make_record, make_run


def altered_bytes(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Real files with a few bytes changed, removed, doubled or put in; some arbitrary ones."""
    change = st.tuples(
        st.floats(0, 1), st.sampled_from(["flip", "set", "cut", "drop", "twice", "put"]), st.binary(max_size=9)
    )

    def apply(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
        for where, what, new in changes:
            at = int(where * len(data))
            if what == "flip" and at < len(data):
                data = data[:at] + bytes([data[at] ^ (new or b"\x01")[0]]) + data[at + 1 :]
            elif what == "cut":
                data = data[:at]
            else:
                kept = {"set": at + len(new), "drop": at + 8, "twice": max(0, at - 64), "put": at}.get(what, at)
                data = data[:at] + (b"" if what in ("drop", "twice") else new) + data[kept:]
        return data

    real = st.builds(apply, st.sampled_from(seeds), st.lists(change, max_size=4))
    return real | st.binary(max_size=200)


STRANGE: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            -1,
            1.5,
            10**30,
            -(10**30),
            10**400,
            2**31,
            2**63,
            1e308,
            math.inf,
            -math.inf,
            math.nan,
        ),
        *("", "NaN", "../../x", "a\x00b", "\ud800", "\u202e", "x" * 5000, "0" * 32, [], {}, [[]], [None], {"": None}),
        *([[[[1]]]], {"schema": 2}, [1, "a", None], "2", [[1, 2], [3]], ["NaN"], {"epoch": 1}),
    ]
)
VALUES = STRANGE | st.recursive(
    STRANGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something can be changed."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        yield from paths_in(part, (*path, name))


def altered_json(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Real documents with up to three values changed, removed or added."""
    parsed = [json.loads(data) for data in seeds]
    places = [[path for path in paths_in(value) if path] for value in parsed]

    @st.composite
    def altered(draw: st.DrawFn) -> bytes:
        number = draw(st.integers(0, len(parsed) - 1))
        value = copy.deepcopy(parsed[number])
        for _ in range(draw(st.integers(0, 3))):
            *parents, name = draw(st.sampled_from(places[number]))
            part = value
            for parent in parents:
                try:
                    part = part[parent]
                except (KeyError, IndexError, TypeError):
                    break
            else:
                change(draw, part, name)
        return json.dumps(value).encode()

    def change(draw: st.DrawFn, part: Any, name: Any) -> None:
        what = draw(st.sampled_from(["set", "set", "remove", "add"]))
        if isinstance(part, dict) and what == "remove":
            part.pop(name, None)
        elif isinstance(part, dict):
            part["extra" if what == "add" else name] = copy.deepcopy(draw(VALUES))
        elif isinstance(part, list) and isinstance(name, int) and name < len(part):
            part[name] = copy.deepcopy(draw(VALUES))

    return altered() | altered_bytes(seeds)


def altered_headers(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Files of tensors whose header is altered as JSON, beside those altered as bytes."""
    pairs = [unpack_tensors(data) for data in seeds]
    headers = [json.dumps(header).encode() for _, header in pairs]

    def rebuilt(number: int, header: bytes) -> bytes:
        try:
            return pack_tensors(pairs[number][0], json.loads(header))
        except (TypeError, ValueError, RecursionError):  # no header that can be written
            return seeds[number]

    choices = [st.builds(partial(rebuilt, number), altered_json([header])) for number, header in enumerate(headers)]
    return st.one_of(*choices, altered_bytes(seeds))


def altered_tables() -> st.SearchStrategy[bytes]:
    """Parquet of ours with up to two columns of other types or values, beside those altered as bytes."""
    table = records_to_table([make_record(make_run(number)) for number in range(2)])
    columns = st.sampled_from(
        [
            *(["2", "x"], [2, None], [None, None], [3, -1], [2**62, 5], [1.5, math.nan], [b"\xff", b"a"]),
            *([[1], [2]], [[[1]], [[None]]], [[[0]], [[-5]]], ["{}", "["], ["[" * 3000, "{}"], [{"epoch": 1}, None]),
            *([[{"epoch": 1, "train_loss": None}], []], ["\x00", "../x"], [True, False], ["NaN", "Infinity"]),
        ]
    )

    def rebuilt(changes: list[tuple[str, list[Any]]], gone: list[str]) -> bytes:
        changed = table
        for name, values in changes:
            changed = changed.set_column(changed.column_names.index(name), name, pa.array(values))
        sink = io.BytesIO()
        pq.write_table(changed.drop_columns(gone), sink)
        return sink.getvalue()

    names = st.sampled_from(table.column_names)
    few = st.lists(st.tuples(names, columns), min_size=1, max_size=2)
    gone = st.lists(names, max_size=1)
    return st.builds(rebuilt, few, gone) | altered_bytes([table_to_parquet(table)])


PIECES = st.sampled_from(
    [
        *("recipe", "student", "teacher", "search", "data", "lanes", "meta", "epochs", "lr", "source", "seeds", "num"),
        *(".", "=", " = ", "\n", "[", "]", "[[", "]]", "{", "}", '"', '"""', "'", "#", ",", "-", "\\u0000", "\\ud800"),
        *("0", "1", "1.5", "1e400", "nan", "inf", "-inf", "true", "none", "0x" + "f" * 2000, "9" * 4400, "9" * 30),
        *("2020-01-01", "12:00:00", "digits", '"smoke"', '"../x"', "distil.seeds=[1]", "[" * 2000, "a." * 2000),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join)


@cache
def key_names() -> list[str]:
    return [key for key, *_ in keys(get_recipe("smoke"))]


def settings_texts() -> st.SearchStrategy[str]:
    return st.builds("{}={}".format, st.sampled_from(key_names()), TEXTS) | TEXTS


def recipe_texts() -> st.SearchStrategy[str]:
    def written(pairs: list[tuple[str, str]]) -> str:
        return "".join(f"{key} = {value}\n" for key, value in pairs)

    return st.lists(st.tuples(st.sampled_from(key_names()), TEXTS), max_size=4).map(written) | TEXTS


def spec_texts() -> st.SearchStrategy[str]:
    """Sources that lead to no files of this machine: reading those is what a user asks for."""
    return TEXTS.filter(lambda text: ".." not in text and not text.partition(":")[2].startswith(("/", "~", ".")))


def images() -> list[bytes]:
    pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    found = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, form)
        found.append(file.getvalue())
    return found
