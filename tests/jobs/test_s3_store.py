"""Every verb on a store in a bucket, as a user calls it, and what the user is told when the bucket cannot be used."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from cluster import s3
from dass.errors import StoreError
from jobs import job
from jobs.budget import Budget
from jobs.config import with_settings
from jobs.console import Console
from jobs.job import Job
from jobs.recipes import get_recipe
from tests.cluster.faulty_server import ALWAYS, Answer, FaultyServer
from tests.cluster.s3_server import UseEndpoint, bucket_url, raw_client, s3_server, use_endpoint
from tests.jobs.command import ROOT, call
from tests.jobs.command import Answer as Ended

__all__ = ["bucket_url", "s3_server", "use_endpoint"]  # fixtures

SMOKE = ("--recipe", "smoke")
WORKING = ("data", "teachers", "collect", "meta-train", "search", "distil", "report", "quickstart")


@pytest.fixture
def store(bucket_url: str) -> str:
    """The URL of a store that holds nothing yet."""
    return f"{bucket_url}/some/prefix"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer is not waited for as long as a user would."""
    monkeypatch.setattr(job, "FIRST_ANSWER_S", 0.3)


def document(ended: Ended) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert ended.code == 0, ended.err
    value = json.loads(ended.out)
    assert isinstance(value, dict)
    return value


def keys(endpoint: str, store: str) -> list[str]:
    """Every key in the bucket, asked of the server itself."""
    pages = raw_client(endpoint).get_paginator("list_objects_v2").paginate(Bucket=store.split("/")[2])
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def refusal(store: str, verb: str) -> str:
    """The one error line of a verb that fails before it does anything."""
    options = () if verb == "status" else SMOKE
    ended = call(verb, *options, "--json", "--store", store)
    assert (ended.code, ended.out) == (1, ""), ended
    assert ended.err == f"{ended.error}\n"
    return ended.error


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_the_whole_way_over_s3(store: str, s3_server: str) -> None:
    command = [sys.executable, "-m", "jobs", "quickstart", *SMOKE, "--json", "--store", store]
    secrets = {"AWS_SECRET_ACCESS_KEY": "secret-of-the-whole-way", "AWS_SESSION_TOKEN": "token-of-the-whole-way"}
    environment = {**os.environ, **secrets}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=480, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    raw, bucket = raw_client(s3_server), store.split("/")[2]
    written = [raw.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys(s3_server, store)]
    for secret in secrets.values():  # events, lanes' reports, records and all else that drivers and lanes left
        assert not [data for data in (*written, done.stdout.encode(), done.stderr.encode()) if secret.encode() in data]
    report = json.loads(done.stdout)
    assert report["report"] == f"{store}/report.html"
    page = raw.get_object(Bucket=bucket, Key="some/prefix/report.html")["Body"].read().decode()
    assert report["verdict"].split(".")[0] in page

    records = [key for key in keys(s3_server, store) if "/records/" in key]
    for verb in ("data", "teachers", "collect", "meta-train", "search", "distil", "report"):
        again = document(call(verb, *SMOKE, "--json", "--store", store))
        assert again.get("pending", 0) == 0
    assert again["verdict"] == report["verdict"]
    status = document(call("status", "--json", "--store", store))
    assert (status["store"], status["pending"], status["finished"]) == (store, 0, len(records))
    assert f"Store {store}" in call("status", "--store", store).out
    assert [key for key in keys(s3_server, store) if "/records/" in key] == records


@pytest.mark.parametrize("verb", ["data", "collect", "quickstart"])
def test_a_dry_run_writes_nothing(verb: str, store: str, s3_server: str) -> None:
    assert document(call(verb, *SMOKE, "--dry-run", "--json", "--store", store))["dry_run"] is True
    assert keys(s3_server, store) == []


def test_status_of_an_empty_bucket_is_all_zeros(store: str, s3_server: str) -> None:
    assert document(call("status", "--json", "--store", store))["planned"] == 0
    assert keys(s3_server, store) == []


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://Not_A_Bucket", "s3://bucket/a//b"])
def test_a_url_that_names_no_bucket_is_wrong_usage(url: str) -> None:
    ended = call("collect", *SMOKE, "--store", url)
    assert (ended.code, ended.out) == (2, "")
    assert f"got '{url}'; correct the URL" in ended.error


@pytest.mark.parametrize("verb", [*WORKING, "status"])
def test_a_missing_bucket_is_told_at_once(verb: str, store: str) -> None:
    missing = "s3://bucket-that-is-not-there/some/prefix"
    assert "the bucket does not exist" in refusal(missing, verb)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("verb", ["collect", "status"])
def test_an_endpoint_where_nothing_answers_is_told(verb: str, store: str, use_endpoint: UseEndpoint) -> None:
    use_endpoint("http://127.0.0.1:9")
    assert "at http://127.0.0.1:9: nothing answers there" in refusal(store, verb)


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("InvalidAccessKeyId", 403, "correct AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, "correct AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", 400, "the credentials have expired"),
        ("AccessDenied", 403, "grant these credentials"),
    ],
)
def test_credentials_that_are_not_taken_are_told(
    code: str, status: int, told: str, store: str, s3_server: str, use_endpoint: UseEndpoint
) -> None:
    with FaultyServer(s3_server) as server:
        use_endpoint(server.url)
        server.faults.append(Answer(status=status, code=code, times=ALWAYS))
        assert told in refusal(store, "collect")


def test_a_machine_without_credentials_is_told(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3.client_of.cache_clear()
    try:
        assert "no credentials were found" in refusal(store, "collect")
    finally:
        s3.client_of.cache_clear()


def test_a_bucket_that_can_only_be_read_is_refused_but_for_reading(
    store: str, s3_server: str, use_endpoint: UseEndpoint
) -> None:
    with FaultyServer(s3_server) as server:
        use_endpoint(server.url)
        server.faults.append(Answer("PUT", status=403, code="AccessDenied", times=ALWAYS))
        assert "permission is denied" in refusal(store, "collect")
        assert call("status", "--store", store).code == 0


def test_a_budget_outlives_a_store_that_is_down_for_a_while(
    store: str, s3_server: str, use_endpoint: UseEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("collect.max_cost=1", "lanes.report_s=0.05")
    with FaultyServer(s3_server) as server:
        use_endpoint(server.url)
        opened = Job.open(with_settings(get_recipe("smoke"), settings), store, Console(is_json=True), dry_run=True)
        down = Answer(path="lanes", status=503, code="SlowDown", times=ALWAYS)
        budget = Budget(opened)
        assert budget.exceeded() is None
        server.faults.append(down)
        time.sleep(0.06)
        server.requests.clear()
        assert budget.exceeded() is None
        assert any("lanes" in path for _, path in server.requests)
        assert "could not be read" in capsys.readouterr().err
        with pytest.raises(StoreError):  # nothing is spent before it is known what was
            Budget(opened).exceeded()


def test_a_bucket_that_keeps_versions_is_refused(store: str, s3_server: str) -> None:
    enabled = {"Status": "Enabled"}
    raw_client(s3_server).put_bucket_versioning(Bucket=store.split("/")[2], VersioningConfiguration=enabled)
    assert "use a bucket of its own without versioning" in refusal(store, "collect")


@pytest.mark.parametrize("place", ["/schema.json", "documents/latest/tasks-", "documents/task/"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_an_object_that_was_damaged_in_the_bucket_is_told_before_anything_is_trained(
    place: str, is_cut: bool, store: str, s3_server: str
) -> None:
    document(call("data", *SMOKE, "--json", "--store", store))
    client, bucket = raw_client(s3_server), store.split("/")[2]
    key = next(key for key in keys(s3_server, store) if place in key)
    found = client.get_object(Bucket=bucket, Key=key)
    data = found["Body"].read()
    damaged = data[:-5] if is_cut else data.replace(b"1", b"2")
    assert damaged != data
    client.put_object(Bucket=bucket, Key=key, Body=damaged, Metadata=found["Metadata"])
    message = refusal(store, "collect")
    assert f"s3://{bucket}/{key}" in message
    assert "the bytes are not those that were written" in message
    assert not any("/records/" in key or "/queue/" in key for key in keys(s3_server, store))
