"""The rights that infra/iam gives are what the store needs, and no more: an S3 server that enforces them tells.

moto looks at actions and resources, not at conditions; the policy has none.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from string import Template
from typing import Any

import boto3
import pytest
import requests

from cluster import s3, s3_upload
from cluster.objects import ObjectStore, open_store
from dass.errors import StoreError
from tests.cluster.s3_server import PART_BYTES, UseEndpoint, environment, use_endpoint
from tests.cluster.test_objects import StoreContract
from tests.infra.overlays import INFRA, ROOT

__all__ = ["use_endpoint"]  # a fixture

POLICY = INFRA / "iam" / "store-policy.json"
BUCKET, PREFIX = "dass-test", "tiny10"
RIGHTS = json.loads(POLICY.read_text())["Statement"]


def policy(without: str | None = None) -> str:
    """The policy for our bucket and prefix, perhaps without one of its actions."""
    found = json.loads(Template(POLICY.read_text()).substitute(bucket=BUCKET, prefix=PREFIX))
    for statement in found["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != without]
    return json.dumps(found)


class Guarded:
    """An S3 server that lets a user do what a policy says."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        root: dict[str, Any] = {"endpoint_url": endpoint, "region_name": "us-east-1"}
        root |= {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
        self._s3, self._iam = boto3.client("s3", **root), boto3.client("iam", **root)

    def keys_of_a_user_with(self, document: str) -> tuple[str, str]:
        """A new server state: two buckets, one user; from here on rights are enforced."""
        self._tell("reset-auth", "inf")
        self._tell("reset")
        for bucket in (BUCKET, "another"):
            self._s3.create_bucket(Bucket=bucket)
        self._iam.create_user(UserName="lane")
        self._iam.put_user_policy(UserName="lane", PolicyName="store", PolicyDocument=document)
        key = self._iam.create_access_key(UserName="lane")["AccessKey"]
        self._tell("reset-auth", "0")
        return key["AccessKeyId"], key["SecretAccessKey"]

    def _tell(self, what: str, value: str = "") -> None:
        requests.post(f"{self.endpoint}/moto-api/{what}", data=value.encode(), timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    command = [sys.executable, "-m", "tests.cluster.s3_server"]
    env = {**os.environ, **environment(""), "S3_UPLOAD_PART_MIN_SIZE": str(PART_BYTES)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=ROOT, env=env
    ) as process:
        assert process.stdout is not None
        try:
            yield Guarded(process.stdout.readline().strip())
        finally:
            process.kill()


class TestUnderThePolicy(StoreContract):
    @pytest.fixture
    def store(self, guarded: Guarded, use_endpoint: UseEndpoint) -> ObjectStore:
        use_endpoint(guarded.endpoint, guarded.keys_of_a_user_with(policy()))
        return open_store(f"s3://{BUCKET}/{PREFIX}")


def test_large_objects_go_in_parts_under_the_policy(
    guarded: Guarded, use_endpoint: UseEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "SINGLE_PUT_BYTES", 0)
    monkeypatch.setattr(s3_upload, "PART_BYTES", PART_BYTES)
    use_endpoint(guarded.endpoint, guarded.keys_of_a_user_with(policy()))
    store = open_store(f"s3://{BUCKET}/{PREFIX}")
    data = bytes(range(256)) * 20
    assert store.put_if_absent("key", data)
    assert not store.put_if_absent("key", data)
    assert store.get("key") == data


@pytest.mark.parametrize("place", [f"{BUCKET}/{PREFIX}2", BUCKET, "another/tiny10"])
def test_nothing_else_is_within_reach(guarded: Guarded, use_endpoint: UseEndpoint, place: str) -> None:
    use_endpoint(guarded.endpoint, guarded.keys_of_a_user_with(policy()))
    store = open_store(f"s3://{place}")
    for attempt in (lambda: store.put("key", b"x"), lambda: store.get("key"), lambda: store.delete("key")):
        with pytest.raises(StoreError, match="permission is denied"):
            attempt()


@pytest.mark.parametrize("right", ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"])
def test_none_of_the_rights_is_superfluous(guarded: Guarded, use_endpoint: UseEndpoint, right: str) -> None:
    use_endpoint(guarded.endpoint, guarded.keys_of_a_user_with(policy(without=right)))
    store = open_store(f"s3://{BUCKET}/{PREFIX}")
    with pytest.raises(StoreError, match="permission is denied"):
        work_with(store)


def work_with(store: ObjectStore) -> None:
    store.put("key", b"x")
    assert store.get("key") == b"x"
    assert list(store.list()) == ["key"]
    store.delete("key")


def test_every_right_has_a_call_that_needs_it() -> None:
    """The two that the test above cannot take away: a store without them works on, only less well."""
    source = (ROOT / "cluster/s3.py").read_text() + (ROOT / "cluster/s3_upload.py").read_text()
    assert {"s3:GetBucketVersioning", "s3:AbortMultipartUpload"} < {a for each in RIGHTS for a in each["Action"]}
    assert ".get_bucket_versioning(" in source
    assert ".abort_multipart_upload(" in source
    assert not any("*" in action for each in RIGHTS for action in each["Action"])
