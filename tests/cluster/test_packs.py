"""Packs in the store are addressed by content, and an altered one is refused."""

from pathlib import Path

import pytest
import torch

from cluster.objects import FolderStore
from cluster.packs import get_pack, pack_key, put_pack
from dass.data.pack import Pack
from dass.data.sources import read_source
from dass.errors import ObjectNotFoundError, StoreError


@pytest.fixture(scope="module")
def pack() -> Pack:
    return read_source("digits", 8)


def test_a_pack_comes_back_as_it_was(pack: Pack, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    assert put_pack(store, pack) == pack.id
    loaded = get_pack(store, pack.id)
    assert loaded.id == pack.id
    assert loaded.class_names == pack.class_names
    assert torch.equal(loaded.images, pack.images)
    assert torch.equal(loaded.labels, pack.labels)


def test_one_altered_pixel_is_noticed(pack: Pack, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    put_pack(store, pack)
    data = bytearray(store.get(pack_key(pack.id)))
    data[-1] ^= 1
    store.put(pack_key(pack.id), bytes(data))
    with pytest.raises(StoreError, match="run `data` again"):
        get_pack(store, pack.id)


def test_a_missing_pack_is_told(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError):
        get_pack(FolderStore(tmp_path / "store"), "0" * 64)
