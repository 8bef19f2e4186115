"""Objects: bytes under keys, in a folder or a bucket. The only thing that must survive when a cluster dies."""

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cluster.redact import redacted
from dass.errors import ConfigError, ObjectNotFoundError, StoreError

KEY_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@-]*")
_HIDDEN = "."  # no key part begins so; temporary files do
_TEXTS = (".json", ".jsonl")
MAX_TEXT_BYTES = 256 * 2**20  # a plan of a million runs has 40 MB
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class Entry:
    """What a listing knows of an object: its length, and when (UTC, by the store's clock) it was last written."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Bytes under keys; what every store promises, whatever lies beneath.

    A key is a relative path with `/` between its parts, each of ASCII letters, digits and `._=+@-` and not beginning
    with a punctuation other than `_`. No key is also the folder of another key (`a` beside `a/b`). An object under a
    key that ends in .json or .jsonl has at most MAX_TEXT_BYTES: a larger one is neither written nor read. What others
    put there under a name that is no key is never listed.

    An object is seen whole or not at all, also when its writer is killed; after a write returns, every later read and
    listing sees it. All methods are safe to retry and to call from several threads. Every failure of what lies
    beneath is a StoreError that names the place and the remedy; an illegal key is a StoreError too. A store can be
    pickled, and `open_store(store.url)` is the same store.
    """

    @property
    def url(self) -> str:
        """The text that `open_store` takes."""

    @property
    def is_remote(self) -> bool:
        """Whether a call is a round trip over a network, so that many calls are worth making in parallel."""

    def put(self, key: str, data: bytes) -> None:
        """Write the object in one step; an object that is there is replaced."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write the object unless the key is taken; of several writers at once, exactly one gets True."""

    def get(self, key: str) -> bytes:
        """The whole object; ObjectNotFoundError when there is none."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """At most `length` >= 0 bytes from `start` >= 0 on, fewer where the object ends; ObjectNotFoundError as in `get`."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under exactly this key."""

    def size(self, key: str) -> int:
        """Length of the object in bytes; ObjectNotFoundError when there is none."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """The keys that begin with `prefix` (a text, it may end within a part), in the order of their characters."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """As `list`, with what the listing knows of each object; one that goes meanwhile may be missing."""

    def delete(self, key: str) -> None:
        """Remove the object; it is fine when there is none."""

    def check_writable(self) -> None:
        """Raise StoreError, with the remedy, unless a write would succeed now. Leaves no object behind."""


def open_store(url: str, patience_s: float | None = None) -> ObjectStore:
    """The store at `url`: a folder, which need not exist yet, or `s3://bucket/prefix`, which need not hold anything yet.

    patience_s: for how long a remote store may fail before a call gives up; None for what suits a long job.

    Raises:
        ConfigError: the scheme is unknown, `url` is empty, or the bucket's name is not legal.
    """
    scheme, separator, rest = url.partition("://")
    if not separator and url:
        return FolderStore(Path(os.path.expanduser(url)).absolute())  # noqa: PTH111 - takes `~nobody` as a name
    if scheme == "file" and rest.startswith("/"):
        return FolderStore(Path(rest))
    if scheme == "s3":
        from cluster.s3 import S3Store  # here, because a folder needs no boto3

        return S3Store.parse(rest, patience_s)
    raise ConfigError(
        f"a store must be a folder or s3://bucket/prefix, got {redacted(url)!r}; give a path such as ./dass-store"
    )


def is_key(key: str) -> bool:
    """Whether `key` is legal; see ObjectStore for the rule."""
    return all(KEY_PART.fullmatch(part) for part in key.split("/"))


def check_key(key: str) -> str:
    """`key` itself when it is legal; see ObjectStore for the rule.

    Raises:
        StoreError: it is not.
    """
    if not is_key(key):
        raise StoreError(
            f"a key must be a relative path whose parts match {KEY_PART.pattern}, got {key!r}; rename the object"
        )
    return key


def check_size(key: str, size_bytes: int) -> None:
    """Raise StoreError when an object under `key` must not be as large; see ObjectStore."""
    if key.endswith(_TEXTS) and size_bytes > MAX_TEXT_BYTES:
        raise StoreError(
            f"{key} must have at most {MAX_TEXT_BYTES} bytes, got {size_bytes}; delete the object and run the job that "
            "wrote it again"
        )


def folder_error(action: str, path: Path, error: OSError) -> StoreError:
    """What to tell the user when `action` (a verb) on `path` met `error`."""
    remedies = {
        errno.ENOSPC: f"the disk is full, {_free_bytes(path)} bytes are free; free some space",
        errno.EDQUOT: "your disk quota is used up; remove files or ask for more",
        errno.EROFS: "the file system is read-only; mount it writable",
        errno.EACCES: "permission is denied; grant this user read and write access",
        errno.EPERM: "the operation is not permitted; use a file system with hard links and grant this user access",
        errno.ENOTDIR: "a part of the path is a file; remove it",
        errno.EISDIR: "the path is a folder where an object belongs; remove it",
        errno.ENAMETOOLONG: "the path is too long; use a shorter store path",
    }
    remedy = remedies.get(error.errno or 0, f"{error.strerror or error}; see that the disk is mounted and healthy")
    return StoreError(
        f"the store must be readable and writable, cannot {action} {path}: {remedy}, or use another store"
    )


def _nearest_folder(path: Path) -> Path:
    return next((place for place in (path, *path.parents) if place.exists()), path)


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(_nearest_folder(path)).free
    except OSError:
        return 0


@contextlib.contextmanager
def _translated(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise folder_error(action, path, error) from error


@dataclass(frozen=True)
class FolderStore:
    """A folder as an ObjectStore, created at the first write; it may lie on a disk that several machines share.

    A write goes to a temporary file under `.tmp/`, is synced to the disk and then renamed or hard-linked to its place.
    A killed writer leaves at most such a file; it is never listed and may be removed at any time. The folder itself may
    be a symbolic link; one inside it is refused, because it would lead reads, writes and deletions elsewhere.
    """

    root: Path

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    @property
    def is_remote(self) -> bool:
        """Never: a folder answers without a round trip."""
        return False

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        path = self._path(key)
        check_size(key, len(data))
        with _translated("write", path), self._temporary(data) as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
            _sync_folder(path.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See ObjectStore; needs a file system with hard links."""
        path = self._path(key)
        check_size(key, len(data))
        if self.exists(key):
            return False
        with _translated("write", path), self._temporary(data) as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
        return True

    def get(self, key: str) -> bytes:
        """See ObjectStore."""
        path = self._path(key)
        with _translated("read", path):
            try:
                with path.open("rb") as file:
                    check_size(key, os.fstat(file.fileno()).st_size)
                    return file.read()
            except _ABSENT as error:
                raise self._not_found(key) from error
            except MemoryError as error:
                raise StoreError(
                    f"an object must fit into memory, got {self.size(key)} bytes under {key!r} in {self.root}; use a "
                    "machine with more memory, or delete the object if nothing of yours can be as large"
                ) from error

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See ObjectStore."""
        path = self._path(key)
        with _translated("read", path):
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(length)
            except _ABSENT as error:
                raise self._not_found(key) from error

    def exists(self, key: str) -> bool:
        """See ObjectStore."""
        path = self._path(key)
        with _translated("read", path):
            return path.is_file()

    def size(self, key: str) -> int:
        """See ObjectStore."""
        path = self._path(key)
        if not self.exists(key):
            raise self._not_found(key)
        with _translated("read", path):
            return path.stat().st_size

    def list(self, prefix: str = "") -> Iterator[str]:
        """See ObjectStore; StoreError where a symbolic link lies inside."""
        folder = prefix.rpartition("/")[0]
        start = self._path(folder) if folder else self.root
        with _translated("list", self.root):
            if self.root.exists() and not self.root.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder")
        return (key for key in self._walk(start, f"{folder}/" if folder else "") if key.startswith(prefix))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ObjectStore."""
        for key in self.list(prefix):
            path = self._path(key)
            with _translated("read", path), contextlib.suppress(*_ABSENT):
                stat = path.stat()
                yield Entry(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        path = self._path(key)
        with _translated("delete", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def check_writable(self) -> None:
        """See ObjectStore; a folder that does not exist yet is not created."""
        with _translated("write", self.root):
            if self.root.exists():
                probe = self.root / f"{_HIDDEN}probe-{uuid.uuid4().hex}"
                try:
                    probe.write_bytes(b"probe")  # bytes, because a full disk still takes an empty file
                finally:
                    probe.unlink(missing_ok=True)
                return
            ancestor = _nearest_folder(self.root)
            if not ancestor.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder")
            if not os.access(ancestor, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "not writable")

    def _path(self, key: str) -> Path:
        """Where the object lies; StoreError when a part of the way is neither a folder nor a file of its own."""
        place = str(self.root)
        for part in check_key(key).split("/"):
            place = f"{place}/{part}"
            try:
                mode = os.lstat(place).st_mode
            except OSError:  # whoever opens it tells what is wrong
                break
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise _foreign(place)
        return self.root / key

    def _not_found(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(
            f"an object must exist to be read, got none under {key!r} in {self.root}; run the job that writes it first"
        )

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """A synced file with `data` beside the objects, gone at the end unless it was renamed."""
        path = self.root / f"{_HIDDEN}tmp" / uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.is_symlink():
            raise _foreign(str(path.parent))
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _walk(self, folder: Path, parent: str) -> Iterator[str]:
        """Keys below `folder` in order: a folder sorts with its `/`, as it does in a key."""
        with _translated("list", folder):
            try:
                with os.scandir(folder) as entries:
                    ours = [entry for entry in entries if KEY_PART.fullmatch(entry.name)]
                if linked := next((entry for entry in ours if entry.is_symlink()), None):
                    raise _foreign(linked.path)
                folders = [f"{entry.name}/" for entry in ours if entry.is_dir(follow_symlinks=False)]
                files = [entry.name for entry in ours if entry.is_file(follow_symlinks=False)]
            except (FileNotFoundError, NotADirectoryError):
                return
        for name in sorted(folders + files):
            if name.endswith("/"):
                yield from self._walk(folder / name, parent + name)
            else:
                yield parent + name


def _foreign(place: str) -> StoreError:
    return StoreError(
        f"a store must hold folders and files of its own alone, got a link or a device at {place}; move what it leads to "
        "into the store, or make the whole store's folder the link"
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
