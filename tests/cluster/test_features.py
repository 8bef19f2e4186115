from datetime import timedelta
from pathlib import Path

import pytest

from cluster.documents import put_document
from cluster.features import get_features, put_features
from cluster.garbage import find_garbage
from cluster.objects import FolderStore
from dass.errors import StoreError
from dass.meta.features import featurise
from tests.dass.meta.test_features import EMBEDDER, SPACE, TEACHER, equal, make_records

KEY = "ab" * 16


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_what_was_kept_is_found(store: FolderStore) -> None:
    task = featurise("flowers", SPACE, TEACHER, make_records(5), EMBEDDER)
    assert get_features(store, KEY) is None
    put_features(store, KEY, task)
    put_features(store, KEY, task)
    found = get_features(store, KEY)
    assert found is not None
    assert equal(found, task)


def test_they_are_no_garbage(store: FolderStore) -> None:
    put_features(store, KEY, featurise("flowers", SPACE, TEACHER, make_records(5), EMBEDDER))
    assert not find_garbage(store, timedelta(seconds=-1))


def test_damaged_ones_are_refused(store: FolderStore) -> None:
    put_document(store, "features", KEY, {"blob": 3})
    with pytest.raises(StoreError, match="no blob"):
        get_features(store, KEY)
    other = "cd" * 16
    put_features(store, other, featurise("flowers", SPACE, TEACHER, make_records(5), EMBEDDER))
    (key,) = store.list("blobs/")
    store.put(key, store.get(key)[:-1] + b"!")
    with pytest.raises(StoreError, match="must hold the bytes it is named after"):
        get_features(store, other)
