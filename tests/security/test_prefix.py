"""No key, name or id leads out of a store, and no link inside a folder does."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.cache import PackCache
from cluster.checkpoints import Token, get_checkpoint, put_checkpoint
from cluster.documents import get_document, get_latest, get_task, put_document, put_latest
from cluster.events import EventLog, read_events
from cluster.ledger import TrialLedger
from cluster.objects import FolderStore, ObjectStore, open_store
from cluster.packs import get_pack
from cluster.scores import ScoreLedger
from cluster.weights import get_blob
from dass.errors import ConfigError, DassError, StoreError
from dass.meta.train import MetaConfig
from dass.meta.tuning import Trial
from tests.cluster.builders import RemoteMemoryStore
from tests.cluster.s3_server import bucket_url, raw_client, s3_server, use_endpoint
from tests.jobs.command import tree
from tests.security.site import STUDENT

__all__ = ["bucket_url", "s3_server", "use_endpoint"]

EVIL = (
    "", ".", "..", "/", "../outside", "a/../../outside", "/etc/passwd", "a//b", "a/", "/a", "./a", "a/./b", "a\x00b",
    "a\nb", "a\\..\\b", "a/%2e%2e/b", "\uff0e\uff0e/outside", "a/\u2025/b", "\u0430", "~/a", "~root/a", "-rf", ".tmp/a",
    "a b", "a:b", "a?b", "a*",
)  # fmt: skip

OPERATIONS: dict[str, Callable[[ObjectStore, str], object]] = {
    "put": lambda store, key: store.put(key, b"x"),
    "put_if_absent": lambda store, key: store.put_if_absent(key, b"x"),
    "get": lambda store, key: store.get(key),
    "get_range": lambda store, key: store.get_range(key, 0, 1),
    "exists": lambda store, key: store.exists(key),
    "size": lambda store, key: store.size(key),
    "delete": lambda store, key: store.delete(key),
}

NAMES: dict[str, Callable[[ObjectStore, str], object]] = {
    "put_document": lambda store, name: put_document(store, "task", name, {}),
    "get_document": lambda store, name: get_document(store, "plan", name),
    "get_task": get_task,
    "put_latest": lambda store, name: put_latest(store, name, {}),
    "get_latest": get_latest,
    "put_checkpoint": lambda store, name: put_checkpoint(store, name, Token(1, 1), b"x"),
    "get_checkpoint": lambda store, name: get_checkpoint(store, name, Token(1, 1)),
    "get_blob": get_blob,
    "get_pack": get_pack,
    "trial": lambda store, name: TrialLedger(store, name, "trials").put(Trial(0, MetaConfig())),
    "scores": lambda store, name: ScoreLedger(store, name).put(0, [STUDENT], [0.5]),
}


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; an empty folder may stay where a name was too long for the disk."""
    return {path: data for path, data in tree(folder).items() if data is not None}


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    """A store beside which a file lies that nobody may touch."""
    (tmp_path / "outside").write_bytes(b"outside")
    store = FolderStore(tmp_path / "store")
    store.put("a/b", b"inside")
    return store


@pytest.mark.parametrize("key", EVIL)
def test_no_key_leads_out_of_a_folder(key: str, folder: FolderStore, tmp_path: Path) -> None:
    before = tree(tmp_path)
    for operation in OPERATIONS.values():
        with pytest.raises(StoreError, match=r"a key must be a relative path .*; rename the object"):
            operation(folder, key)
    assert tree(tmp_path) == before


def test_no_listing_leads_out_of_a_folder(folder: FolderStore) -> None:
    for prefix in EVIL[1:]:
        with suppress(StoreError):  # a folder that no key can have
            assert list(folder.list(prefix)) in ([], ["a/b"] if "a/b".startswith(prefix) else [])


@pytest.mark.parametrize("name", NAMES)
def test_no_name_or_id_leads_out_of_a_store(name: str, folder: FolderStore, tmp_path: Path) -> None:
    before = files(tmp_path)
    for evil in ("../outside", "../../outside", "/etc/passwd", "..", "a\x00b", "\u0430", "x" * 5000):
        with pytest.raises(DassError):
            NAMES[name](folder, evil)
    assert files(tmp_path) == before


@pytest.mark.parametrize("lane", ["../../outside", "/etc", "a\x00b", "a/../../b"])
def test_a_lanes_name_leads_to_its_events_alone(lane: str, folder: FolderStore, tmp_path: Path) -> None:
    before = tree(tmp_path)
    events = EventLog(folder, lane)
    events.emit("began")
    with pytest.raises(StoreError):
        events.flush()
    with pytest.raises(StoreError):
        list(read_events(folder, lane))
    assert tree(tmp_path) == before


def test_the_id_of_a_pack_names_no_file_outside_the_cache(tmp_path: Path) -> None:
    (tmp_path / "precious.pack").write_bytes(b"of the user")
    cache = PackCache(tmp_path / "cache", 10**9)
    for evil in ("../precious", str(tmp_path / "precious"), "0" * 63, "0" * 64 + "/../../precious", "A" * 64):
        with pytest.raises(StoreError, match=r"a pack's id must be a SHA-256, got .*; delete the task"):
            cache.load(RemoteMemoryStore(), evil)
    assert (tmp_path / "precious.pack").read_bytes() == b"of the user"


@pytest.mark.s3
def test_no_key_leads_out_of_a_prefix_in_a_bucket(bucket_url: str, s3_server: str) -> None:
    bucket, raw = bucket_url.removeprefix("s3://"), raw_client(s3_server)
    outside = ("outside", "team/outside", "team/storehouse/x", "team/store", "team/../outside")
    for key in outside:
        raw.put_object(Bucket=bucket, Key=key, Body=b"outside")
    raw.put_object(Bucket=bucket, Key="team/store/../../outside", Body=b"a name that means nothing to S3")
    store = open_store(f"{bucket_url}/team/store")
    store.put("a/b", b"inside")
    for key in EVIL:
        for operation in OPERATIONS.values():
            with pytest.raises(StoreError, match="a key must be a relative path"):
                operation(store, key)
    assert list(store.list()) == ["a/b"]
    for prefix in EVIL[1:]:
        assert list(store.list(prefix)) in ([], ["a/b"] if "a/b".startswith(prefix) else [])
    found = {entry["Key"] for entry in raw.list_objects_v2(Bucket=bucket)["Contents"]}
    assert found == {*outside, "team/store/../../outside", "team/store/a/b"}
    for key in outside:
        assert raw.get_object(Bucket=bucket, Key=key)["Body"].read() == b"outside"


@pytest.mark.parametrize("prefix", ["../other", "a/../../b", "a//b", "a b", ".hidden", "a\x00b"])
def test_no_prefix_leads_out_of_a_bucket(prefix: str) -> None:
    with pytest.raises(ConfigError, match="correct the URL"):
        open_store(f"s3://bucket/{prefix}")


def linked_file(store: FolderStore, outside: Path) -> None:
    (store.root / "a" / "link").symlink_to(outside / "file")


def linked_folder(store: FolderStore, outside: Path) -> None:
    (store.root / "a" / "link").symlink_to(outside, target_is_directory=True)


def linked_to_nothing(store: FolderStore, outside: Path) -> None:
    (store.root / "a" / "link").symlink_to(outside / "new")


@pytest.mark.parametrize("link", [linked_file, linked_folder, linked_to_nothing])
@pytest.mark.parametrize("key", ["a/link", "a/link/file"])
def test_a_link_inside_a_folder_is_refused(
    key: str, link: Callable[[FolderStore, Path], None], folder: FolderStore, tmp_path: Path
) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "file").write_bytes(b"of the user")
    link(folder, outside)
    before = tree(tmp_path)
    for operation in OPERATIONS.values():
        with pytest.raises(StoreError, match=r"got a link or a device at .*/a/link; move what it leads to"):
            operation(folder, key)
    for prefix in ("", "a/", "a/link"):
        with pytest.raises(StoreError, match="got a link or a device"):
            list(folder.list(prefix))
    assert tree(tmp_path) == before


def test_the_place_of_temporary_files_is_no_link_either(folder: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for path in (folder.root / ".tmp").iterdir():
        path.unlink()
    (folder.root / ".tmp").rmdir()
    (folder.root / ".tmp").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(StoreError, match="got a link or a device"):
        folder.put("a/c", b"x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_folder_itself_may_be_a_link(folder: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(folder.root, target_is_directory=True)
    store = FolderStore(tmp_path / "other")
    store.put("a/c", b"x")
    assert list(store.list()) == list(folder.list()) == ["a/b", "a/c"]


def test_what_is_neither_file_nor_folder_never_blocks(folder: FolderStore) -> None:
    os.mkfifo(folder.root / "a" / "pipe")
    for operation in OPERATIONS.values():
        with pytest.raises(StoreError, match="got a link or a device"):
            operation(folder, "a/pipe")
    assert list(folder.list()) == ["a/b"]


def test_names_that_are_no_keys_are_passed_over(folder: FolderStore) -> None:
    for name in ("notes~", "a b", "t\u00e4sk.json", ".DS_Store"):
        (folder.root / "a" / name).write_bytes(b"of an editor")
    assert list(folder.list()) == ["a/b"]
    assert [entry.key for entry in folder.entries()] == ["a/b"]
