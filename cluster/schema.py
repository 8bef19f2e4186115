"""Values as JSON bytes, the version that everything in a store carries, and the marker of who owns the store.

In JSON a number that is not finite stands as the text NaN, Infinity or -Infinity, because JSON has none: a diverged run
must leave its record too. A field added to the dataclasses raises SCHEMA_VERSION; a reader gives it its default in
older objects and refuses newer ones. Version 2 added the incarnation to the provenance, version 3 the precision to the
recipe.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from cluster.objects import ObjectStore
from cluster.sound import fault_of
from cluster.typed import read_value
from dass.errors import ObjectNotFoundError, SchemaTooNewError, StoreError
from dass.json_text import parse_json
from dass.records import ID_VERSION, Recipe, Record

SCHEMA_VERSION = 3
STORE_KEY = "schema.json"

_VERSIONS = ("schema", "id_version")  # the fields of the marker
_OURS = (SCHEMA_VERSION, ID_VERSION)

_T = TypeVar("_T")


def plain(value: Any) -> Any:  # noqa: ANN401 - a walk over arbitrary JSON-able values
    """`value` as JSON types: dataclasses with all their fields, numbers that are not finite as texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def encode_json(value: Any) -> bytes:  # noqa: ANN401
    """One text for equal values: sorted keys, no spaces; dataclasses with all their fields."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_json(data: bytes, key: str) -> dict[str, Any]:
    """The JSON object under `key`, which must carry a `schema` version that this package knows.

    Raises:
        SchemaTooNewError: it was written by a newer version of this package.
        StoreError: it is not a JSON object with a version.
    """
    try:
        value = parse_json(data)
        version = value["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(key, f"{len(data)} bytes that are not ({error!r})") from error
    check_version(version, key)
    return dict(value)


def check_version(version: object, key: str, known: int = SCHEMA_VERSION) -> None:
    """Raise SchemaTooNewError when `version` of the object under `key` is above `known`, StoreError when it is none."""
    if type(version) is not int or version < 0:
        raise damaged(key, f"the version {version!r:.80}")
    if version > known:
        raise SchemaTooNewError(
            f"{key} must have a version of at most {known} to be read here, got {version}; upgrade the package dass"
        )


def build(cls: type[_T], value: Mapping[str, Any], key: str) -> _T:
    """The dataclass or annotation `cls` from JSON types, every type checked and no unknown field allowed.

    Raises:
        StoreError: the value does not fit; the message names `key` and the field.
    """
    try:
        return read_value(cls, value)
    except ValueError as error:
        raise damaged(key, f"a value that does not fit {getattr(cls, '__name__', cls)} ({error})") from error


def record_to_json(record: Record) -> bytes:
    """The record with its run_id and its schema version; equal records give equal bytes."""
    return encode_json({"schema": SCHEMA_VERSION, "run_id": record.run.id, **plain(record)})


def record_from_json(data: bytes, key: str) -> Record:
    """The record under `key`; its run_id is computed anew.

    Raises:
        SchemaTooNewError: it was written by a newer version of this package.
        StoreError: the bytes are damaged, or the run_id they carry is not that of the run they hold.
    """
    value = decode_json(data, key)
    run_id = value.pop("run_id", None)
    del value["schema"]
    run = value.get("run")
    if isinstance(run, dict) and isinstance(run.get("recipe"), dict):
        try:
            value["run"] = {**run, "recipe": read_recipe(json.dumps(run["recipe"]))}
        except ValueError as error:
            raise damaged(key, f"a recipe that does not fit ({error})") from error
    return verified(build(Record, value, key), run_id, key)


@lru_cache(maxsize=1024)
def read_recipe(text: str) -> Recipe:
    """The recipe with this JSON, one object for equal texts: a database holds few recipes and many runs of each.

    Raises:
        ValueError: the text is no recipe.
    """
    return read_value(Recipe, parse_json(text))


def check_schema(store: ObjectStore) -> bool:
    """Whether the store has an owner, which a first write gives it.

    Raises:
        SchemaTooNewError: a newer version of this package owns it.
    """
    return _owner(store) is not None


def claim_schema(store: ObjectStore) -> None:
    """Mark the store with our versions at its first use, and take it over from an older version of this package.

    From then on the older version refuses the store, at the start of its jobs and of its lanes; lanes of it that are
    at work end their lease, and what they write stays readable. Every start claims, so that a marker that two versions
    wrote at the same instant is set right by the next of the newer one.

    Raises:
        SchemaTooNewError: a newer version of this package owns the store.
    """
    if not store.put_if_absent(STORE_KEY, _marker()):
        upgrade_schema(store)


def upgrade_schema(store: ObjectStore) -> None:
    """As `claim_schema`, but a store without owner stays so."""
    if (owner := _owner(store)) is not None and owner != _OURS:
        store.put(STORE_KEY, _marker())


def _marker() -> bytes:
    return encode_json(dict(zip(_VERSIONS, _OURS, strict=True)))


def _owner(store: ObjectStore) -> tuple[int, int] | None:
    """The versions in the marker, neither above ours; None where there is no marker."""
    try:
        value = decode_json(store.get(STORE_KEY), STORE_KEY)
    except ObjectNotFoundError:
        return None
    check_version(value.get("id_version", ID_VERSION), f"id_version in {STORE_KEY}", ID_VERSION)
    return value["schema"], value.get("id_version", ID_VERSION)


def damaged(key: str, received: str) -> StoreError:
    """What to tell the user when the object under `key` cannot be understood."""
    return StoreError(
        f"{key} must hold what this package writes there, got {received}; "
        "delete the object and run the job that wrote it again"
    )


def verified(record: Record, run_id: object, key: str) -> Record:
    """The record itself; StoreError unless its run has this id and every value is one that a run can leave."""
    if record.run.id != run_id:
        raise damaged(key, f"run_id {run_id!r:.80} for the run {record.run.id}")
    if fault := fault_of(record):
        raise damaged(key, fault)
    return record
