"""Small facts as JSON that other jobs need and that are no records: tasks, plans, what a search found, scores.

A document under documents/<kind>/<id>.json is written once and never changes. The one thing that moves is a pointer
under documents/latest/<name>.json, such as the predictor that a search takes when none is named.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from cluster.objects import ObjectStore
from cluster.parallel import each
from cluster.schema import SCHEMA_VERSION, build, damaged, decode_json, encode_json
from cluster.typed import read_value
from dass.errors import StoreError
from dass.records import Task

Kind = Literal["task", "plan", "evaluation", "features", "contest"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_FOLDER = "documents"
_LATEST = "latest"


def put_document(store: ObjectStore, kind: Kind, id: str, value: Mapping[str, Any]) -> bool:  # noqa: A002
    """Write a document for good; True when it is new, False when an equal one is there.

    `value` holds JSON types and dataclasses; a number that is not finite becomes a text, as in a record.

    Raises:
        StoreError: another value stands under this id; the message names the fields that differ.
    """
    key = _document_key(kind, id)
    if store.put_if_absent(key, _encode(value)):
        return True
    if (there := _decode(store.get(key), key)) != (wanted := _decode(_encode(value), key)):
        differing = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
        raise StoreError(
            f"a document never changes, got another value of {', '.join(differing)} for {key}; "
            "keep the value that is there, or use another store"
        )
    return False


def get_document(store: ObjectStore, kind: Kind, id: str) -> dict[str, Any]:  # noqa: A002
    """The value of a document; ObjectNotFoundError when there is none."""
    key = _document_key(kind, id)
    return _decode(store.get(key), key)


def list_documents(store: ObjectStore, kind: Kind) -> list[str]:
    """The ids of all documents of this kind, sorted."""
    prefix = f"{_FOLDER}/{_checked_kind(kind)}/"
    return sorted(key.removeprefix(prefix).removesuffix(".json") for key in store.list(prefix))


def put_latest(store: ObjectStore, name: str, value: Mapping[str, Any]) -> None:
    """Let the pointer `name` hold `value` from now on; of several writers the last one wins."""
    store.put(_key(_LATEST, name), _encode(value))


def get_latest(store: ObjectStore, name: str, **kinds: Any) -> dict[str, Any]:  # noqa: ANN401 - annotations
    """What the pointer `name` holds.

    kinds: fields of the value, each with its type, such as `runs=tuple[str, ...]`; they come as that type. One that is
    not there reads as None.

    Raises:
        ObjectNotFoundError: it was never set.
        StoreError: a field is of another type.
    """
    key = _key(_LATEST, name)
    value = _decode(store.get(key), key)
    for field, kind in kinds.items():
        try:
            value[field] = read_value(kind, value.get(field))
        except ValueError as error:
            raise damaged(key, f"a value that does not fit ({field}: {error})") from error
    return value


def put_task(store: ObjectStore, task: Task) -> bool:
    """Write a task under its own id, with all its indices; True when it is new.

    A task that is there stays as it is: an equal id means equal pixels and labels, whatever name it goes by and
    whichever pack its pixels lie in.
    """
    return store.put_if_absent(_document_key("task", task.id), _encode(vars(task)))


def get_task(store: ObjectStore, id: str) -> Task:  # noqa: A002
    """The task with this id.

    Raises:
        ObjectNotFoundError: the store holds none.
        StoreError: what it holds is not a task with this id.
    """
    key = _document_key("task", id)
    task = build(Task, get_document(store, "task", id), key)
    if task.id != id:
        raise damaged(key, f"the task {task.id}")
    return task


def get_tasks(store: ObjectStore, ids: Iterable[str]) -> dict[str, Task]:
    """The tasks with these ids, by id; errors as in `get_task`."""
    return {task.id: task for task in each(store, lambda id_: get_task(store, id_), list(dict.fromkeys(ids)))}


def _encode(value: Mapping[str, Any]) -> bytes:
    return encode_json({"schema": SCHEMA_VERSION, "value": value})


def _decode(data: bytes, key: str) -> dict[str, Any]:
    value = decode_json(data, key).get("value")
    if not isinstance(value, dict):
        raise damaged(key, f"{json.dumps(value)[:80]} as its value")
    return value


def _document_key(kind: Kind, id: str) -> str:  # noqa: A002
    return _key(_checked_kind(kind), id)


def _checked_kind(kind: str) -> str:
    if kind not in get_args(Kind):
        raise StoreError(f"a document's kind must be one of {', '.join(get_args(Kind))}, got {kind!r}; choose one")
    return kind


def _key(folder: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise StoreError(f"a document's name must match {_NAME.pattern}, got {name!r}; choose another name")
    return f"{_FOLDER}/{folder}/{name}.json"
