"""Packs of remote stores on a machine's own disk, shared by its lanes and jobs.

    FOLDER/<sha256>.pack    a pack, whole and verified; read-only, mapped into memory while it is in use
    FOLDER/incoming         the one that is being fetched; whatever lies there without the lock was left by a killed process
    FOLDER/lock             held by whoever adds or removes files, so one machine fetches a pack once

Whoever uses a pack holds a shared lock on its file, so it is not removed under its user. The cache only ever saves work:
where it cannot serve, the pack comes straight from the store, and the caller is told why.
"""

import errno
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.objects import ObjectStore
from cluster.packs import damaged_pack, get_pack, pack_key
from cluster.settings import LaneConfig
from dass.data.pack import Pack
from dass.errors import SchemaTooNewError, StoreError

GB = 10**9
PIECE_BYTES = 16 * 2**20  # fetched at a time, by each of FETCHERS threads: bounds the memory
FETCHERS = 4


@dataclass(frozen=True)
class Loaded:
    """A pack, and why the cache could not serve it; no problem is the empty text."""

    pack: Pack
    problem: str = ""


class _UncachedError(Exception):
    """The pack has no place in the cache now; the message says why."""


@dataclass(frozen=True)
class PackCache:
    """The packs that this machine holds, at most `bound_bytes` of them; the least recently used go first."""

    folder: Path
    bound_bytes: int

    def load(self, store: ObjectStore, pack_id: str) -> Loaded:
        """The pack with this id, from the disk or else from the store; verified either way.

        Raises:
            ObjectNotFoundError: neither holds it.
            StoreError: the store fails, or its bytes have another hash.
        """
        pack_key(pack_id)  # refuses what could name a file outside the cache
        try:
            self._check_owner()
            return Loaded(self._held(pack_id) or self._fetched(store, pack_id))
        except _UncachedError as error:
            problem = str(error)
        except OSError as error:
            problem = (
                f"{self.folder} cannot be used: {error.strerror or error}; set lanes.cache_dir or lanes.cache_gb=0"
            )
        return Loaded(get_pack(store, pack_id), problem)

    def _check_owner(self) -> None:
        """Anyone may make a folder in a temporary folder, and could alter a pack after it was verified."""
        if self.folder.exists() and self.folder.stat().st_uid not in (0, os.getuid()):
            raise _UncachedError(f"{self.folder} belongs to another user; set lanes.cache_dir")

    def _path(self, pack_id: str) -> Path:
        return self.folder / f"{pack_id}.pack"

    def _held(self, pack_id: str) -> Pack | None:
        """The pack when the cache has it whole; a damaged file is as good as none."""
        path = self._path(pack_id)
        try:
            pack = _open_locked(path)
        except (FileNotFoundError, StoreError):
            return None
        if pack.id != pack_id:
            return None
        with suppress(OSError):  # another user's file: it only looks older than it is
            os.utime(path)
        return pack

    def _fetched(self, store: ObjectStore, pack_id: str) -> Pack:
        """The pack from the store, by way of the cache."""
        with self._only_one():
            if (pack := self._held(pack_id)) is not None:  # another process was faster
                return pack
            self._path(pack_id).unlink(missing_ok=True)  # damaged
            size_bytes = store.size(pack_key(pack_id))
            self._make_room(size_bytes)
            incoming = self.folder / "incoming"
            try:
                _fetch(store, pack_key(pack_id), size_bytes, incoming)
                try:
                    pack = _open_locked(incoming)
                except SchemaTooNewError:
                    raise
                except StoreError as error:
                    raise damaged_pack(pack_id, "bytes that are no pack") from error
                if pack.id != pack_id:
                    raise damaged_pack(pack_id, pack.id)
                incoming.replace(self._path(pack_id))
            finally:
                incoming.unlink(missing_ok=True)
            return pack

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """The right to add and remove files; a killed process loses it at once. What one left half done is removed."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (self.folder / "incoming").unlink(missing_ok=True)
            yield

    def _make_room(self, size_bytes: int) -> None:
        """Remove packs that nobody uses until `size_bytes` more keep the bound, and the disk has them.

        Raises:
            _UncachedError: that is not enough; nothing is removed then.
        """
        if size_bytes > self.bound_bytes:
            raise _UncachedError(
                f"the pack's {_gb(size_bytes)} exceed lanes.cache_gb={self.bound_bytes / GB:g}; raise it"
            )
        held = {path: path.stat() for path in self.folder.glob("*.pack")}
        used_bytes = sum(stat.st_size for stat in held.values())
        free_bytes = shutil.disk_usage(self.folder).free
        excess_bytes = used_bytes + size_bytes - min(self.bound_bytes, used_bytes + free_bytes)
        leaving: list[Path] = []
        for path in sorted(held, key=lambda path: held[path].st_mtime_ns):
            if excess_bytes > 0 and not _is_used(path):
                leaving.append(path)
                excess_bytes -= held[path].st_size
        if excess_bytes > 0:
            raise _UncachedError(
                f"no room for {_gb(size_bytes)} in {self.folder}: {_gb(used_bytes)} of lanes.cache_gb="
                f"{self.bound_bytes / GB:g} are taken, {_gb(free_bytes)} of the disk are free, and packs in use stay; "
                "raise the one or free the other"
            )
        for path in leaving:
            path.unlink()


def open_cache(settings: LaneConfig) -> PackCache | None:
    """The cache that the settings ask for; None where they turn it off."""
    if settings.cache_gb == 0:
        return None
    folder = Path(settings.cache_dir) if settings.cache_dir else _default_folder()
    return PackCache(folder, int(settings.cache_gb * GB))


def load_pack(store: ObjectStore, pack_id: str, cache: PackCache | None) -> Loaded:
    """A pack of any store: that of a folder is read where it lies, that of a remote one by way of the cache.

    Raises:
        ObjectNotFoundError, StoreError: as `get_pack`.
    """
    if cache is None or not store.is_remote:
        return Loaded(get_pack(store, pack_id))
    return cache.load(store, pack_id)


def _default_folder() -> Path:
    """One for all lanes of this user; where no temporary folder can be written, the cache cannot serve and says so."""
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:
        place = "/tmp"  # noqa: S108 - what stands in the message
    return Path(place) / f"dass-packs-{os.getuid()}"


def _open_locked(path: Path) -> Pack:
    """The pack of a file, with a shared lock on the file for as long as its images live.

    Raises:
        FileNotFoundError: there is none, or it was removed before the lock was ours.
        StoreError: the file is damaged.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "replaced", str(path))
        pack = Pack.from_file(path)
    except BaseException:
        os.close(descriptor)
        raise
    weakref.finalize(pack.images, os.close, descriptor)
    return pack


def _is_used(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _fetch(store: ObjectStore, key: str, size_bytes: int, path: Path) -> None:
    """Copy an object into a new file, several pieces at a time."""
    with path.open("xb") as file, ThreadPoolExecutor(FETCHERS) as pool:

        def fetch(start: int) -> None:
            piece = store.get_range(key, start, PIECE_BYTES)
            if os.pwrite(file.fileno(), piece, start) < len(piece):
                raise OSError(errno.ENOSPC, "the disk is full")

        for _ in pool.map(fetch, range(0, size_bytes, PIECE_BYTES)):
            pass


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.3g} GB"
