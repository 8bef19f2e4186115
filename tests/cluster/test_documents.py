import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.documents import (
    Kind,
    get_document,
    get_latest,
    get_task,
    list_documents,
    put_document,
    put_latest,
    put_task,
)
from cluster.objects import FolderStore
from cluster.plan import Plan
from dass.errors import ObjectNotFoundError, SchemaTooNewError, StoreError
from dass.records import Task
from tests.cluster.builders import make_run

TASK = Task("t1", "flowers", "sha", 32, ("daisy", "rose"), (4, 7), tuple(range(0, 900, 3)), (1, 4), (2,))


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def test_a_document_comes_back_as_json(store: FolderStore) -> None:
    assert put_document(store, "task", "s1", {"budget": (1, 2), "best": {"score": 0.5}, "note": None})
    assert get_document(store, "task", "s1") == {"budget": [1, 2], "best": {"score": 0.5}, "note": None}
    assert list(store.list()) == ["documents/task/s1.json"]


def test_writing_an_equal_document_again_is_fine(store: FolderStore) -> None:
    assert put_document(store, "task", "s1", {"a": (1, 2), "b": 3})
    assert not put_document(store, "task", "s1", {"b": 3, "a": [1, 2]})


def test_another_value_under_an_id_is_refused_and_names_the_fields(store: FolderStore) -> None:
    put_document(store, "task", "s1", {"a": 1, "b": 2, "c": 3})
    with pytest.raises(StoreError, match=r"never changes, got another value of b, c, d for documents/task/s1\.json"):
        put_document(store, "task", "s1", {"a": 1, "b": 5, "d": 4})
    assert get_document(store, "task", "s1") == {"a": 1, "b": 2, "c": 3}


def test_documents_are_listed_by_kind(store: FolderStore) -> None:
    for name in ("b", "a", "c.1"):
        put_document(store, "plan", name, {})
    put_document(store, "task", "x", {})
    assert list_documents(store, "plan") == ["a", "b", "c.1"]
    assert list_documents(store, "task") == ["x"]


def test_a_pointer_moves_and_is_no_document(store: FolderStore) -> None:
    with pytest.raises(ObjectNotFoundError):
        get_latest(store, "predictor")
    put_latest(store, "predictor", {"id": "p1"})
    put_latest(store, "predictor", {"id": "p2"})
    assert get_latest(store, "predictor") == {"id": "p2"}
    assert list_documents(store, "plan") == []


def test_absent_documents_are_not_found(store: FolderStore) -> None:
    with pytest.raises(ObjectNotFoundError, match=r"documents/plan/nothing\.json"):
        get_document(store, "plan", "nothing")


@pytest.mark.parametrize(
    ("kind", "name"), [("../records", "x"), ("latest", "x"), ("plan", "a/b"), ("plan", ""), ("plan", "..")]
)
def test_names_that_lead_elsewhere_are_refused(store: FolderStore, kind: Kind, name: str) -> None:
    with pytest.raises(StoreError, match="a document's"):
        put_document(store, kind, name, {})


def test_a_task_comes_back_with_its_indices(store: FolderStore) -> None:
    assert put_task(store, TASK)
    assert not put_task(store, TASK)
    assert get_task(store, "t1") == TASK
    assert list_documents(store, "task") == ["t1"]
    renamed = replace(TASK, name="roses", source="another pack")  # equal pixels under another name
    assert not put_task(store, renamed)
    assert get_task(store, "t1") == TASK


def test_a_task_of_another_id_or_shape_is_refused(store: FolderStore) -> None:
    put_document(store, "task", "t2", vars(TASK))
    with pytest.raises(StoreError, match=r"t2\.json must hold .* the task t1"):
        get_task(store, "t2")
    put_document(store, "task", "t3", {**vars(TASK), "valid": ["one"]})
    with pytest.raises(StoreError, match=r"t3\.json must hold .*valid"):
        get_task(store, "t3")


def test_a_plan_is_a_document(store: FolderStore) -> None:
    plan = Plan("paper", tuple(make_run(number) for number in range(5)))
    put_document(store, "plan", plan.id, plan.to_document())
    assert Plan.from_document(get_document(store, "plan", plan.id)) == plan


def test_damaged_and_newer_documents_are_told_apart(store: FolderStore) -> None:
    store.put("documents/plan/p.json", json.dumps({"schema": 99, "value": {}}).encode())
    with pytest.raises(SchemaTooNewError, match="upgrade the package"):
        get_document(store, "plan", "p")
    for data in (b"{", b'{"schema": 1}', b'{"schema": 1, "value": [1]}'):
        store.put("documents/plan/p.json", data)
        with pytest.raises(StoreError, match=r"documents/plan/p\.json must hold"):
            get_document(store, "plan", "p")
