"""The store in a bucket, on a real server on loopback and behind a proxy: places, writes, reads."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from cluster import s3, s3_upload
from cluster.objects import ObjectStore, open_store
from cluster.s3 import S3Store
from dass.errors import ObjectNotFoundError, StoreError
from tests.cluster.faulty_server import (
    ALWAYS,
    AlterAnswer,
    AlterRequest,
    Answer,
    CutAnswer,
    CutRequest,
    FaultyServer,
    LoseAnswer,
)
from tests.cluster.s3_faulty import LONG, POSITIONS, Bucket, bucket, faulty, in_parts, proxy, store
from tests.cluster.s3_server import (
    PART_BYTES,
    bucket_url,
    s3_server,
    use_endpoint,
)
from tests.cluster.test_objects import StoreContract

__all__ = ["bucket", "bucket_url", "faulty", "in_parts", "proxy", "s3_server", "store", "use_endpoint"]  # fixtures


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, bucket_url: str) -> ObjectStore:
        return open_store(f"{bucket_url}/some/prefix")


class TestS3StoreInParts(StoreContract):
    @pytest.fixture
    def store(self, bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
        monkeypatch.setattr(s3, "SINGLE_PUT_BYTES", 0)
        monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)
        return open_store(bucket_url)


# Places and listings


def test_a_store_sees_only_what_is_below_its_prefix(store: S3Store, bucket: Bucket) -> None:
    others = [replace(store, prefix=prefix) for prefix in ("some/prefix2", "some", "")]
    for number, place in enumerate((store, *others)):
        place.put("key", b"%d" % number)
    assert list(store.list()) == ["key"]
    assert list(others[2].list()) == ["key", "some/key", "some/prefix/key", "some/prefix2/key"] == bucket.keys()
    assert [place.get("key") for place in (store, *others)] == [b"0", b"1", b"2", b"3"]


def test_a_listing_goes_on_over_its_pages(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, faulty: FaultyServer
) -> None:
    monkeypatch.setattr(s3, "PAGE_KEYS", 3)
    keys = [f"r/{number:02d}" for number in range(11)]
    for key in reversed(keys):
        store.put(key, key.encode())
    faulty.faults.append(Answer("GET", "continuation-token", skip=1))  # the third page, once
    assert list(store.list("r/")) == keys
    assert [entry.size_bytes for entry in store.entries()] == [4] * 11
    assert len([path for method, path in faulty.requests if "list-type=2" in path]) == 9


def test_what_others_left_in_the_bucket_is_not_listed(store: S3Store, bucket: Bucket) -> None:
    store.put("a/b", b"")
    for key in ("folder/", "a/.hidden", "with space", "a//b"):
        bucket.put(key, b"")
    assert list(store.list()) == ["a/b"]


def test_an_object_that_others_wrote_is_read_as_it_is(store: S3Store, bucket: Bucket) -> None:
    bucket.put("a", b"by hand")
    assert store.get("a") == b"by hand"


def test_a_pickle_holds_the_place_and_no_connection(store: S3Store) -> None:
    store.put("a", b"")
    text = pickle.dumps(S3Store("bucket", "prefix"))
    assert b"boto" not in text
    assert pickle.loads(text) == S3Store("bucket", "prefix")  # noqa: S301 - our own bytes


def test_many_threads_share_a_store(store: S3Store) -> None:
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda number: store.put(f"n/{number}", b"%d" % number), range(32)))
        assert list(pool.map(lambda number: store.get(f"n/{number}"), range(32))) == [b"%d" % n for n in range(32)]


# Writes


@pytest.mark.parametrize(("times", "old"), [(1, b"old"), (ALWAYS, b"old"), (ALWAYS, None)])
@pytest.mark.parametrize("position", [0, 1, len(LONG) // 2, len(LONG) - 1])
def test_a_put_that_is_cut_at_any_byte_leaves_the_old_object_or_the_new_one(
    times: int, position: int, old: bytes | None, store: S3Store, bucket: Bucket, faulty: FaultyServer
) -> None:
    if old is not None:
        store.put("a", old)
    faulty.faults.append(CutRequest("PUT", times=times, after_bytes=position))
    if times == 1:
        store.put("a", LONG)
        assert bucket.get("a") == LONG
        return
    with pytest.raises(StoreError, match=r"cannot write s3://.*/some/prefix/a at http.*gave up after \d+ tries in"):
        store.put("a", LONG)
    assert list(store.list()) == ([] if old is None else ["a"])
    assert old is None or bucket.get("a") == old
    faulty.faults.clear()
    store.put("a", LONG)
    assert bucket.get("a") == LONG


STEPS = {
    "begin": CutRequest("POST", "?uploads"),
    "finish": CutRequest("POST", "uploadId=", after_bytes=20),
    **{
        f"part {part} at {position}": CutRequest("PUT", f"partNumber={part}", after_bytes=position)
        for part, positions in ((1, POSITIONS), (3, POSITIONS[2:3]))
        for position in positions
    },
}


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("times", [1, ALWAYS])
@pytest.mark.parametrize("step", STEPS)
def test_an_upload_in_parts_that_is_cut_anywhere_leaves_nothing_visible(
    times: int, step: str, store: S3Store, bucket: Bucket, faulty: FaultyServer
) -> None:
    store.put("a", b"old")
    faulty.faults.append(replace(STEPS[step], times=times))
    if times == 1:
        store.put("a", LONG)
    else:
        with pytest.raises(StoreError, match="cannot write"):
            store.put("a", LONG)
        assert bucket.get("a") == b"old"
        faulty.faults.clear()
        store.put("a", LONG)
    assert bucket.get("a") == store.get("a") == LONG
    assert step == "begin" or bucket.uploads() == 0  # an upload whose begin nobody heard of has no parts either
    assert store.get_range("a", 999, 3) == LONG[999:1002]


@pytest.mark.usefixtures("in_parts")
def test_an_interrupted_upload_leaves_no_parts(store: S3Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = s3_upload.is_other, []

    def interrupted(answer: Any, md5: bytes) -> bool:
        calls.append(answer)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(answer, md5)

    monkeypatch.setattr(s3_upload, "is_other", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put("a", LONG)
    assert bucket.keys() == []
    assert bucket.uploads() == 0


@pytest.mark.parametrize("parts", [False, True])
def test_a_write_whose_answer_is_lost_still_knows_that_it_won(
    parts: bool, store: S3Store, bucket: Bucket, faulty: FaultyServer, request: pytest.FixtureRequest
) -> None:
    if parts:
        request.getfixturevalue("in_parts")
    faulty.faults.append(LoseAnswer("POST", "uploadId=") if parts else LoseAnswer("PUT"))
    assert store.put_if_absent("a", LONG)
    faulty.faults.append(LoseAnswer("POST", "uploadId=") if parts else LoseAnswer("PUT"))
    assert not store.put_if_absent("a", LONG)  # equal bytes, but of another writer
    faulty.faults.append(LoseAnswer("POST", "uploadId=") if parts else LoseAnswer("PUT"))
    store.put("a", LONG[::-1])
    assert bucket.get("a") == LONG[::-1]
    assert bucket.uploads() == 0
    assert faulty.faults[0].times == faulty.faults[-1].times == 0


def test_one_of_many_writers_wins_though_answers_are_lost(store: S3Store, faulty: FaultyServer) -> None:
    faulty.faults.append(LoseAnswer("PUT", times=6))
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda _: store.put_if_absent("race", b"all write the same"), range(8)))
    assert sum(wins) == 1


def test_a_server_without_conditional_writes_will_do(store: S3Store, bucket: Bucket, faulty: FaultyServer) -> None:
    refusal = Answer("PUT", status=501, code="NotImplemented")
    faulty.faults.append(replace(refusal))
    assert store.put_if_absent("a", b"first")
    faulty.faults.append(replace(refusal))
    assert not store.put_if_absent("a", b"second")
    assert bucket.get("a") == b"first"


def test_a_large_object_that_is_there_is_not_sent(store: S3Store, faulty: FaultyServer) -> None:
    data = bytes(s3.ASK_FIRST_BYTES + 1)
    assert store.put_if_absent("a", data)
    sent = len(faulty.requests)
    assert not store.put_if_absent("a", data)
    assert [method for method, _ in faulty.requests[sent:]] == ["HEAD"]


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
def test_bytes_that_change_on_their_way_are_sent_again(
    parts: bool,
    conditional: bool,
    store: S3Store,
    bucket: Bucket,
    faulty: FaultyServer,
    request: pytest.FixtureRequest,
) -> None:
    if parts:
        request.getfixturevalue("in_parts")
    fault = AlterRequest("PUT", at=7)
    faulty.faults.append(fault)
    if conditional:
        assert store.put_if_absent("a", LONG)
    else:
        store.put("a", LONG)
    assert fault.times == 0
    assert bucket.get("a") == LONG


def test_bytes_that_always_change_on_their_way_are_an_error(store: S3Store, faulty: FaultyServer) -> None:
    faulty.faults.append(AlterRequest("PUT", times=ALWAYS, at=7))
    with pytest.raises(StoreError, match=r"cannot write .*/a at .*stored bytes with the ETag.*after 3 tries"):
        store.put("a", LONG)


# Reads


@pytest.mark.parametrize("fault", [CutAnswer("GET", after_bytes=100), AlterAnswer("GET", at=100)])
def test_an_object_that_is_damaged_on_its_way_is_read_again(
    fault: CutAnswer | AlterAnswer, store: S3Store, faulty: FaultyServer
) -> None:
    store.put("a", LONG)
    faulty.faults.append(replace(fault))
    assert store.get("a") == LONG
    faulty.faults.append(replace(fault, times=ALWAYS))
    with pytest.raises(StoreError, match=r"cannot read s3://.*/some/prefix/a at") as caught:
        store.get("a")
    assert not isinstance(caught.value, ObjectNotFoundError)


def test_a_range_that_is_cut_is_read_again(store: S3Store, faulty: FaultyServer) -> None:
    store.put("a", LONG)
    faulty.faults.append(CutAnswer("GET", after_bytes=10))
    assert store.get_range("a", 100, 200) == LONG[100:300]


@pytest.mark.parametrize("damaged", [LONG[:-1], b"", LONG[:10] + b"!" + LONG[11:]])
def test_an_object_that_was_damaged_in_the_bucket_is_named(
    damaged: bytes, store: S3Store, bucket: Bucket, faulty: FaultyServer
) -> None:
    store.put("r/a", LONG)
    bucket.put("r/a", damaged, bucket.metadata("r/a"))
    before = len(faulty.requests)
    with pytest.raises(
        StoreError, match=r"/r/a at .*bytes are not those that were written.*3 tries.*; delete the object"
    ):
        store.get("r/a")
    assert len(faulty.requests) == before + 3
