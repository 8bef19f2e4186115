import errno
import os
import pickle
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.objects import FolderStore, ObjectStore, check_key, folder_error, open_store
from dass.errors import ConfigError, ObjectNotFoundError, StoreError

KEYS = st.from_regex(r"[ab](/[ab]|[.-]?[ab]){0,4}", fullmatch=True)


class StoreContract:
    """What every store promises; a test class of a store derives from it and gives `store`."""

    def test_an_object_is_read_back_as_it_was_written(self, store: ObjectStore) -> None:
        store.put("a/b/c.json", b"\x00data")
        assert store.get("a/b/c.json") == b"\x00data"
        assert store.exists("a/b/c.json")
        assert store.size("a/b/c.json") == 5

    def test_put_replaces(self, store: ObjectStore) -> None:
        store.put("a", b"long content")
        store.put("a", b"new")
        assert store.get("a") == b"new"

    def test_put_if_absent_keeps_the_first(self, store: ObjectStore) -> None:
        assert store.put_if_absent("a/b", b"first")
        assert not store.put_if_absent("a/b", b"second")
        assert store.get("a/b") == b"first"

    def test_one_of_many_writers_wins(self, store: ObjectStore) -> None:
        with ThreadPoolExecutor(8) as pool:
            wins = list(pool.map(lambda number: store.put_if_absent("race/key", b"%d" % number), range(8)))
        assert sum(wins) == 1
        assert store.get("race/key") == b"%d" % wins.index(True)

    def test_absent_objects(self, store: ObjectStore) -> None:
        store.put("a/b", b"")
        for key in ("x", "a", "a/x", "x/y/z"):
            assert not store.exists(key)
            with pytest.raises(ObjectNotFoundError, match=key):
                store.get(key)
            with pytest.raises(ObjectNotFoundError, match=key):
                store.size(key)

    def test_delete_removes_and_does_not_mind_absence(self, store: ObjectStore) -> None:
        store.put("a/b", b"data")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("never/was")
        assert not store.exists("a/b")
        assert list(store.list()) == []

    def test_an_empty_object_is_an_object(self, store: ObjectStore) -> None:
        store.put("empty", b"")
        assert store.size("empty") == 0
        assert list(store.list()) == ["empty"]

    def test_a_prefix_may_end_within_a_part(self, store: ObjectStore) -> None:
        for key in ("r/ab/1", "r/ab/2", "r/abc/3", "r/b/4", "q"):
            store.put(key, b"")
        assert list(store.list("r/ab")) == ["r/ab/1", "r/ab/2", "r/abc/3"]
        assert list(store.list("r/ab/")) == ["r/ab/1", "r/ab/2"]
        assert list(store.list("nothing/here")) == []
        assert list(store.list()) == ["q", "r/ab/1", "r/ab/2", "r/abc/3", "r/b/4"]

    def test_a_range_is_the_slice_of_the_object(self, store: ObjectStore) -> None:
        data = bytes(range(100))
        store.put("a/b", data)
        for start, length in ((0, 0), (0, 100), (10, 5), (95, 50), (100, 1), (200, 10)):
            assert store.get_range("a/b", start, length) == data[start : start + length]
        with pytest.raises(ObjectNotFoundError, match="a/c"):
            store.get_range("a/c", 0, 1)

    def test_entries_are_the_listing_with_lengths_and_times(self, store: ObjectStore) -> None:
        before = datetime.now(UTC) - timedelta(seconds=2)  # an object's time may be cut to whole seconds
        for key, length in (("r/b", 3), ("r/a", 5), ("q", 0)):
            store.put(key, bytes(length))
        found = list(store.entries("r/"))
        assert [(entry.key, entry.size_bytes) for entry in found] == [("r/a", 5), ("r/b", 3)]
        assert [entry.key for entry in store.entries()] == list(store.list())
        assert all(before < entry.modified_at < datetime.now(UTC) + timedelta(seconds=2) for entry in found)

    def test_keys_are_listed_in_the_order_of_their_characters(self, store: ObjectStore) -> None:
        keys = ["a-b", "a.b", "a/b", "a0", "a/b-c", "aa/b", "A", "a/c/d", "a_/x"]
        for key in keys:
            store.put(key, b"")
        assert list(store.list()) == sorted(keys)

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.hidden", "a\\b", "a b", "ä"])
    def test_illegal_keys_are_refused_everywhere(self, store: ObjectStore, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, b""),
            lambda: store.put_if_absent(key, b""),
            lambda: store.get(key),
            lambda: store.get_range(key, 0, 1),
            lambda: store.exists(key),
            lambda: store.size(key),
            lambda: store.delete(key),
        ]
        for call in calls:
            with pytest.raises(StoreError, match="a key must be"):
                call()

    def test_its_url_and_its_pickle_lead_back_to_it(self, store: ObjectStore) -> None:
        store.put("a", b"data")
        assert open_store(store.url).get("a") == b"data"
        assert pickle.loads(pickle.dumps(store)).get("a") == b"data"  # noqa: S301 - our own bytes

    def test_the_check_of_writing_leaves_nothing(self, store: ObjectStore) -> None:
        store.put("a", b"data")
        store.check_writable()
        assert list(store.list()) == ["a"]


class TestFolderStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return FolderStore(tmp_path / "store")

    def test_the_folder_appears_with_the_first_write(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path / "deep" / "store")
        store.check_writable()
        assert list(store.list()) == []
        assert not (tmp_path / "deep").exists()
        store.put("a", b"")
        assert (tmp_path / "deep" / "store" / "a").is_file()

    def test_temporary_files_of_killed_writers_are_never_listed(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path)
        store.put("a/b", b"data")
        (tmp_path / ".tmp" / "left-behind").write_bytes(b"half")
        assert list(store.list()) == ["a/b"]
        store.put("a/c", b"data")
        assert list(store.list()) == ["a/b", "a/c"]

    def test_writes_leave_no_temporary_file(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path)
        store.put("a", b"1")
        store.put_if_absent("b", b"1")
        store.put_if_absent("b", b"2")
        assert list((tmp_path / ".tmp").iterdir()) == []

    def test_objects_get_the_permissions_that_the_user_asked_for(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            FolderStore(tmp_path).put("a", b"1")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640

    def test_a_file_in_the_place_of_the_folder_is_an_error_with_a_remedy(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("I am no store")
        for store in (FolderStore(path), FolderStore(path / "below")):
            with pytest.raises(StoreError, match=r"file.*a part of the path is a file; remove it"):
                store.check_writable()
            with pytest.raises(StoreError, match="file; remove it"):
                store.put("a", b"")
        with pytest.raises(StoreError, match="a part of the path is a file"):
            FolderStore(path).list()

    def test_writing_where_a_folder_of_keys_is_names_the_path(self, tmp_path: Path) -> None:
        store = FolderStore(tmp_path)
        store.put("a/b", b"")
        with pytest.raises(StoreError, match=f"cannot write {tmp_path}/a: the path is a folder"):
            store.put("a", b"")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_without_permission_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "locked").mkdir(mode=0o500)
        for place in ("locked", "locked/store"):
            with pytest.raises(StoreError, match="permission is denied; grant this user"):
                FolderStore(tmp_path / place).check_writable()

    def test_a_disk_that_is_full_is_told_with_its_free_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "not" / "there"
        error = folder_error("write", path, OSError(errno.ENOSPC, "No space left on device"))
        assert str(path) in str(error)
        assert "the disk is full" in str(error)
        assert any(word.isdigit() and int(word) > 0 for word in str(error).split())

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG])
    def test_every_failure_names_the_path_and_a_remedy(self, tmp_path: Path, number: int) -> None:
        message = str(folder_error("read", tmp_path, OSError(number, os.strerror(number))))
        assert f"cannot read {tmp_path}" in message
        assert "; " in message.partition("cannot read")[2]

    @settings(max_examples=30)
    @given(st.dictionaries(KEYS, st.binary(max_size=4), max_size=8))
    def test_a_folder_behaves_like_a_dictionary(
        self, tmp_path_factory: pytest.TempPathFactory, objects: dict[str, bytes]
    ) -> None:
        store = FolderStore(tmp_path_factory.mktemp("store"))
        model = {k: v for k, v in objects.items() if not any(other.startswith(k + "/") for other in objects)}
        for key, data in model.items():
            store.put(key, data)
        assert list(store.list()) == sorted(model)
        assert {key: store.get(key) for key in model} == model
        for prefix in ("a", "a/", "b/a", "ab"):
            assert list(store.list(prefix)) == sorted(key for key in model if key.startswith(prefix))


def test_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("store").url == str(tmp_path / "store")
    assert open_store(f"file://{tmp_path}/x") == FolderStore(tmp_path / "x")


@pytest.mark.parametrize(
    "url",
    [
        *("", "gs://bucket", "file://relative", "s3://", "s3:///prefix", "s3://ab", "s3://Bucket/prefix"),
        *("s3://bucket/pre fix", "s3://bucket//prefix", "s3://bucket/../other", "s3://10.0.0.1/prefix", "s3://a..b"),
    ],
)
def test_urls_that_name_no_store_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"a store must be a folder.*got"):
        open_store(url)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/prefix", "s3://my.bucket-1/a/deep_er/prefix.v2"])
def test_an_s3_url_leads_to_its_bucket_and_prefix(url: str) -> None:
    for written in (url, f"{url}/"):
        store = open_store(written)
        assert store.url == url
        assert store.is_remote
        assert store == open_store(store.url)


def test_a_legal_key_is_given_back() -> None:
    assert check_key("records/loose/0a/0a1b.json") == "records/loose/0a/0a1b.json"
