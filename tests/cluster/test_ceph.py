"""The same promises on Ceph's gateway, whose S3 is none of Amazon's code and none of moto's."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from cluster import s3, s3_upload
from cluster.database import RunDatabase
from cluster.objects import ObjectStore, open_store
from cluster.s3 import S3Store
from dass.errors import StoreError
from tests.cluster.builders import make_record, make_run
from tests.cluster.ceph_server import KEYS, Ceph, ceph
from tests.cluster.s3_server import UseEndpoint, make_bucket, raw_client, use_endpoint
from tests.cluster.test_objects import StoreContract

__all__ = ["ceph", "use_endpoint"]  # fixtures

pytestmark = [pytest.mark.ceph, pytest.mark.slow]

PART_BYTES = 5 * 2**20  # the least that Ceph takes


@pytest.fixture
def store(ceph: Ceph, use_endpoint: UseEndpoint) -> S3Store:
    use_endpoint(ceph.endpoint, KEYS)
    place = make_bucket(ceph.endpoint, KEYS).removeprefix("s3://")
    return S3Store.parse(f"{place}/some/prefix")


class TestS3StoreOnCeph(StoreContract):
    @pytest.fixture
    def store(self, store: S3Store) -> ObjectStore:
        return open_store(store.url)


@pytest.mark.parametrize("repetition", range(10))
def test_one_of_many_writers_of_equal_bytes_wins(repetition: int, store: S3Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda _: store.put_if_absent("race", b"equal"), range(8)))
    assert sum(wins) == 1


def test_large_objects_go_in_parts_and_come_back(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "SINGLE_PUT_BYTES", PART_BYTES)
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)
    data = bytes(range(256)) * 45_000  # 11.5 MB: three parts
    assert store.put_if_absent("a", data)
    assert not store.put_if_absent("a", data)
    store.put("b", data)
    assert store.get("a") == store.get("b") == data
    assert store.get_range("a", PART_BYTES - 2, 4) == data[PART_BYTES - 2 : PART_BYTES + 2]
    assert [entry.size_bytes for entry in store.entries()] == [len(data)] * 2


def test_a_bucket_that_keeps_versions_is_refused(ceph: Ceph, store: S3Store) -> None:
    enabled = {"Status": "Enabled"}
    raw_client(ceph.endpoint, KEYS).put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration=enabled)
    with pytest.raises(StoreError, match="the bucket keeps old versions"):
        store.check_writable()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("nobody", KEYS[1]), "the access key id is not known there"),
        ((KEYS[0], "wrong"), "the secret access key is wrong"),
    ],
)
def test_wrong_credentials_are_told(
    keys: tuple[str, str], told: str, ceph: Ceph, store: S3Store, use_endpoint: UseEndpoint
) -> None:
    use_endpoint(ceph.endpoint, keys)
    for call in (store.check_writable, lambda: store.get("a"), lambda: store.exists("a")):
        with pytest.raises(StoreError, match=told):
            call()


def test_a_missing_bucket_is_told(store: S3Store) -> None:
    with pytest.raises(StoreError, match="the bucket does not exist"):
        replace(store, bucket="bucket-that-is-not-there").get("a")


def test_records_are_found_again(store: S3Store) -> None:
    database = RunDatabase(store)
    records = [make_record(make_run(number)) for number in range(100)]
    assert all(map(database.add, records))
    assert not database.add(records[0])
    other = RunDatabase(open_store(store.url))
    assert other.finished_ids() == {record.run.id for record in records}
    assert {record.run.id: record for record in other.scan()} == {record.run.id: record for record in records}


def test_what_was_acknowledged_outlives_killed_gateways(ceph: Ceph, store: S3Store) -> None:
    """Writers go on through three kills and never hear of them; one of each key's writers wins."""
    acknowledged: dict[str, bytes] = {}
    ended = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not ended.is_set():
            key, data = f"w{writer}/{number:05d}", b"%d " % number * 500
            if number % 2:
                store.put(key, data)
            else:
                assert store.put_if_absent(key, data), f"{key} is this writer's own"
            acknowledged[key] = data
            number += 1

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, writer) for writer in range(8)]
        try:
            for _ in range(3):
                threading.Event().wait(1.5)
                ceph.kill_gateway()
                ceph.start_gateway()
            threading.Event().wait(1.5)
        finally:
            ended.set()
        for writer in writers:
            writer.result()
    assert len(acknowledged) > 100
    assert set(store.list()) >= set(acknowledged)
    assert {key: store.get(key) for key in acknowledged} == acknowledged
