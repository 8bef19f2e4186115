"""A store in a bucket whose requests pass a proxy that fails as networks do; fixtures to import where they are wanted."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster import s3, s3_upload
from cluster.s3 import S3Store
from cluster.s3_failures import Patience
from tests.cluster.faulty_server import (
    FaultyServer,
)
from tests.cluster.s3_server import (
    PART_BYTES,
    UseEndpoint,
    make_bucket,
    raw_client,
)

LONG = bytes(range(256)) * 13  # 3,328 bytes: four parts
POSITIONS = (0, 1, PART_BYTES // 2, PART_BYTES - 1)


class Time:
    """A clock that only a sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[FaultyServer]:
    """The proxy in front of the server."""
    with FaultyServer(s3_server) as server:
        yield server


@pytest.fixture
def faulty(proxy: FaultyServer, use_endpoint: UseEndpoint) -> FaultyServer:
    """The proxy without a fault yet, and the endpoint that our client knows."""
    use_endpoint(proxy.url)
    proxy.faults.clear()
    proxy.requests.clear()
    return proxy


@pytest.fixture
def store(s3_server: str, faulty: FaultyServer) -> S3Store:
    """A store behind the proxy that waits without spending time."""
    time = Time()
    url = f"{make_bucket(s3_server)}/some/prefix"
    return replace(S3Store.parse(url.removeprefix("s3://")), patience=Patience(30.0, time.clock, time.sleep))


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object that is longer than a part is written in parts."""
    monkeypatch.setattr(s3, "SINGLE_PUT_BYTES", PART_BYTES)
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)


class Bucket:
    """What is really in a store's bucket, asked of the server itself."""

    def __init__(self, endpoint: str, store: S3Store) -> None:
        self._client = raw_client(endpoint)
        self._store = store

    def at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._store.bucket, "Key": f"{self._store.prefix}/{key}"}

    def get(self, key: str) -> bytes:
        data: bytes = self._client.get_object(**self.at(key))["Body"].read()
        return data

    def put(self, key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        self._client.put_object(**self.at(key), Body=data, Metadata=metadata or {})

    def metadata(self, key: str) -> dict[str, str]:
        return dict(self._client.head_object(**self.at(key))["Metadata"])

    def keys(self) -> list[str]:
        return [found["Key"] for found in self._client.list_objects_v2(Bucket=self._store.bucket).get("Contents", ())]

    def uploads(self) -> int:
        return len(self._client.list_multipart_uploads(Bucket=self._store.bucket).get("Uploads", ()))

    def keep_versions(self) -> None:
        enabled = {"Status": "Enabled"}
        self._client.put_bucket_versioning(Bucket=self._store.bucket, VersioningConfiguration=enabled)


@pytest.fixture
def bucket(s3_server: str, store: S3Store) -> Bucket:
    return Bucket(s3_server, store)
