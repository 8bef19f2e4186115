"""The cache of packs against a remote store that counts what is read from it."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from cluster import cache as cache_module
from cluster.cache import PackCache, load_pack, open_cache
from cluster.objects import FolderStore
from cluster.packs import pack_key, put_pack
from cluster.settings import LaneConfig
from dass.data.pack import Pack
from dass.errors import ConfigError, ObjectNotFoundError, StoreError
from tests.cluster.builders import RemoteMemoryStore
from tests.dass.data.packs import make_pack

ROOM = 10**6
PACKS = [make_pack(seed=seed) for seed in range(4)]
SIZE = len(PACKS[0].to_bytes())


@pytest.fixture
def store() -> RemoteMemoryStore:
    store = RemoteMemoryStore()
    for pack in PACKS:
        put_pack(store, pack)
    return store


@pytest.fixture
def cache(tmp_path: Path) -> PackCache:
    return PackCache(tmp_path / "cache", ROOM)


def load(cache: PackCache, store: RemoteMemoryStore, number: int) -> Pack:
    """The pack of that number, which must come whole and through the cache."""
    loaded = cache.load(store, PACKS[number].id)
    assert loaded.problem == ""
    assert torch.equal(loaded.pack.images, PACKS[number].images)
    assert loaded.pack.id == PACKS[number].id
    return loaded.pack


def held(cache: PackCache) -> set[int]:
    """The numbers of the packs on the disk; fails on any other file but the lock."""
    names = {path.name for path in cache.folder.iterdir()} - {"lock"}
    numbers = {number for number, pack in enumerate(PACKS) if f"{pack.id}.pack" in names}
    assert len(numbers) == len(names), names
    return numbers


def age(cache: PackCache, *numbers: int) -> None:
    """Set the times of last use, the first the longest ago."""
    for order, number in enumerate(numbers):
        os.utime(cache.folder / f"{PACKS[number].id}.pack", (1000 + order, 1000 + order))


def test_a_pack_is_read_from_the_store_once(cache: PackCache, store: RemoteMemoryStore) -> None:
    for _ in range(3):
        load(cache, store, 0)
    assert store.reads == [pack_key(PACKS[0].id)]
    load(cache, store, 1)
    assert len(store.reads) == 2
    assert held(cache) == {0, 1}


def test_a_cached_pack_needs_no_store(cache: PackCache, store: RemoteMemoryStore) -> None:
    load(cache, store, 0)
    store.objects.clear()
    load(cache, store, 0)
    with pytest.raises(ObjectNotFoundError):
        cache.load(RemoteMemoryStore(), PACKS[1].id)


def test_large_packs_come_in_pieces(
    cache: PackCache, store: RemoteMemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "PIECE_BYTES", 1000)
    load(cache, store, 0)
    assert len(store.reads) == -(-SIZE // 1000)


def test_the_least_recently_used_goes_first(tmp_path: Path, store: RemoteMemoryStore) -> None:
    cache = PackCache(tmp_path / "cache", 3 * SIZE + 10)
    for number in range(3):
        load(cache, store, number)
    age(cache, 0, 1, 2)
    load(cache, store, 0)  # now 1 is the oldest
    load(cache, store, 3)
    assert held(cache) == {0, 2, 3}
    age(cache, 3, 2, 0)
    load(cache, store, 1)
    assert held(cache) == {0, 1, 2}


def test_a_pack_in_use_stays(tmp_path: Path, store: RemoteMemoryStore) -> None:
    cache = PackCache(tmp_path / "cache", 2 * SIZE)
    used = load(cache, store, 0)
    load(cache, store, 1)
    age(cache, 0, 1)
    also_used = load(cache, store, 2)
    assert held(cache) == {0, 2}
    loaded = cache.load(store, PACKS[3].id)
    assert torch.equal(loaded.pack.images, PACKS[3].images)
    assert "packs in use stay" in loaded.problem
    assert held(cache) == {0, 2}
    del used
    load(cache, store, 3)
    assert held(cache) == {2, 3}
    assert torch.equal(also_used.images, PACKS[2].images)


def test_a_pack_beyond_the_bound_is_used_without_the_cache(tmp_path: Path, store: RemoteMemoryStore) -> None:
    cache = PackCache(tmp_path / "cache", SIZE)
    load(cache, store, 0)
    large = make_pack(per_class=7)
    put_pack(store, large)
    loaded = cache.load(store, large.id)
    assert loaded.pack.id == large.id
    assert "exceed lanes.cache_gb=" in loaded.problem
    assert held(cache) == {0}


@pytest.mark.parametrize("damage", ["a bit", "a half", "nothing left", "another pack"])
def test_a_damaged_file_is_fetched_again(cache: PackCache, store: RemoteMemoryStore, damage: str) -> None:
    load(cache, store, 0)
    path = cache.folder / f"{PACKS[0].id}.pack"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(
        {
            "a bit": bytes(data),
            "a half": bytes(data[: SIZE // 2]),
            "nothing left": b"",
            "another pack": PACKS[1].to_bytes(),
        }[damage]
    )
    load(cache, store, 0)
    assert len(store.reads) == 2
    assert path.read_bytes() == PACKS[0].to_bytes()


@pytest.mark.parametrize("stored", [b"no pack at all", PACKS[1].to_bytes()])
def test_a_damaged_object_is_an_error_and_not_kept(cache: PackCache, store: RemoteMemoryStore, stored: bytes) -> None:
    store.objects[pack_key(PACKS[0].id)] = stored
    with pytest.raises(StoreError, match=r"must have that hash, got .* run `data` again"):
        cache.load(store, PACKS[0].id)
    assert held(cache) == set()


def test_many_threads_share_one_download(cache: PackCache, store: RemoteMemoryStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: load(cache, store, 0), range(32)):
            pass
    assert len(store.reads) == 1


PROCESS = """
import sys
from dataclasses import dataclass
from pathlib import Path
from cluster.cache import PackCache
from cluster.objects import FolderStore

@dataclass(frozen=True)
class Slow(FolderStore):
    @property
    def is_remote(self): return True
    def get_range(self, key, start, length):
        with (Path(sys.argv[2]) / "reads").open("ab") as file: file.write(b".")
        if sys.argv[4] == "hang":
            print("fetching", flush=True); sys.stdin.read()
        return super().get_range(key, start, length)

loaded = PackCache(Path(sys.argv[2]) / "cache", 10**6).load(Slow(Path(sys.argv[1])), sys.argv[3])
print(loaded.problem or loaded.pack.id)
"""


def process(folder: Path, tmp_path: Path, how: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROCESS, str(folder), str(tmp_path), PACKS[0].id, how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_pack(FolderStore(tmp_path / "store"), PACKS[0])
    return tmp_path / "store"


def test_a_killed_process_blocks_nobody_and_its_half_file_goes(folder: Path, tmp_path: Path) -> None:
    with process(folder, tmp_path, "hang") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "fetching\n"
        assert (tmp_path / "cache" / "incoming").exists()
        waiting = [process(folder, tmp_path) for _ in range(2)]
        killed.send_signal(signal.SIGKILL)
    for child in waiting:
        assert child.communicate(timeout=60)[0] == PACKS[0].id + "\n"
    assert (tmp_path / "reads").read_bytes() == b".."  # the killed one's, and one for the other two
    assert held(PackCache(tmp_path / "cache", ROOM)) == {0}


def test_a_pack_that_another_process_uses_stays(tmp_path: Path, store: RemoteMemoryStore) -> None:
    cache = PackCache(tmp_path / "cache", SIZE)
    load(cache, store, 0)
    path = cache.folder / f"{PACKS[0].id}.pack"
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        assert "packs in use stay" in cache.load(store, PACKS[1].id).problem
        user.kill()
    load(cache, store, 1)
    assert held(cache) == {1}


def test_a_file_in_the_way_of_the_folder_is_told(tmp_path: Path, store: RemoteMemoryStore) -> None:
    (tmp_path / "file").write_text("text")
    for place in (tmp_path / "file", tmp_path / "file" / "cache", Path("/dev/null/cache")):
        loaded = PackCache(place, ROOM).load(store, PACKS[0].id)
        assert loaded.pack.id == PACKS[0].id
        assert f"{place} cannot be used: " in loaded.problem
        assert "set lanes.cache_dir" in loaded.problem


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a folder to another user")
def test_a_folder_of_another_user_is_not_trusted(cache: PackCache, store: RemoteMemoryStore) -> None:
    load(cache, store, 0)
    os.chown(cache.folder, 12345, 12345)
    assert "belongs to another user" in cache.load(store, PACKS[0].id).problem


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for three packs."""
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={(3 * SIZE // 4096 + 3) * 4096}"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(path).free == 0


def test_on_a_full_disk_unused_packs_go_and_then_the_cache_steps_aside(
    small_disk: Path, store: RemoteMemoryStore
) -> None:
    cache = PackCache(small_disk / "cache", ROOM)
    used = load(cache, store, 0)
    load(cache, store, 1)
    fill(small_disk / "foreign")
    also_used = load(cache, store, 2)  # in the place of 1
    assert held(cache) == {0, 2}
    fill(small_disk / "foreign")
    loaded = cache.load(store, PACKS[3].id)
    assert torch.equal(loaded.pack.images, PACKS[3].images)
    assert "0 GB of the disk are free" in loaded.problem
    assert held(cache) == {0, 2}
    assert [used.id, also_used.id] == [PACKS[0].id, PACKS[2].id]


def test_a_disk_that_refuses_in_the_middle_is_told_and_left_clean(cache: PackCache, store: RemoteMemoryStore) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, limits[1]))
    try:
        loaded = cache.load(store, PACKS[0].id)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert loaded.pack.id == PACKS[0].id
    assert "cannot be used: " in loaded.problem
    assert held(cache) == set()


def test_a_folder_store_is_read_where_it_lies(folder: Path, cache: PackCache) -> None:
    assert load_pack(FolderStore(folder), PACKS[0].id, cache).pack.id == PACKS[0].id
    assert not cache.folder.exists()


def test_the_settings_turn_the_cache_off_and_say_where_it_is(tmp_path: Path, store: RemoteMemoryStore) -> None:
    assert open_cache(LaneConfig(cache_gb=0)) is None
    assert load_pack(store, PACKS[0].id, None).pack.id == PACKS[0].id
    assert open_cache(LaneConfig(cache_gb=0.5, cache_dir=str(tmp_path))) == PackCache(tmp_path, 5 * 10**8)
    default = open_cache(LaneConfig())
    assert default is not None
    assert default.folder.name == f"dass-packs-{os.getuid()}"
    with pytest.raises(ConfigError, match=r"lanes.cache_gb must be >= 0 and finite, got -1"):
        LaneConfig(cache_gb=-1)
    with pytest.raises(ConfigError, match=r"lanes.cache_dir must be an absolute path, got 'cache'"):
        LaneConfig(cache_dir="cache")


def test_without_any_temporary_folder_packs_are_used_without_the_cache(
    store: RemoteMemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(Path, "mkdir", refuse)
    loaded = load_pack(store, PACKS[0].id, open_cache(LaneConfig()))
    assert loaded.pack.id == PACKS[0].id
    assert loaded.problem == (
        f"/tmp/dass-packs-{os.getuid()} cannot be used: Read-only file system; "  # noqa: S108 - only told
        "set lanes.cache_dir or lanes.cache_gb=0"
    )


def refuse(*_: object, **__: object) -> None:
    """What a system whose disk is read-only says."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
